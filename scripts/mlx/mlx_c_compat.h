/* Force-included ahead of mlx-c's sources and headers.
 *
 * mlx-c declares its float16 and bfloat16 accessors only where the compiler has
 * Arm's native half types, but mlx-rs calls them everywhere. Standing in for
 * mlx/c/half.h makes mlx-c build and declare them on every CPU. In C++ the types
 * are MLX's own. In C, which only bindgen reads, they are the ones that give the
 * Rust types mlx-rs expects: a tuple struct around u16, and u16.
 */
#ifndef WAN_I2V_MLX_C_COMPAT_H
#define WAN_I2V_MLX_C_COMPAT_H

#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16

#ifdef __cplusplus

#include "mlx/types/half_types.h"
typedef mlx::core::float16_t float16_t;
typedef mlx::core::bfloat16_t bfloat16_t;

/* mlx-c uses std::format, which libstdc++ has from version 13 on. */
#include <version>
#ifdef __cpp_lib_format
#include <format>
#else
#define FMT_HEADER_ONLY
#include <fmt/format.h>
namespace std {
using fmt::format;
}
#endif

#else

#include <stdint.h>
typedef __fp16 float16_t;
typedef uint16_t bfloat16_t;

#endif

#endif
