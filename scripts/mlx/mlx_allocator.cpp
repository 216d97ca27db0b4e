/* MLX's allocator for processors passes on what malloc gives it, null too, and whoever
 * writes there ends the process. libmlxc.so comes before libmlx in the dynamic linker's
 * search order, so this function wins: its allocator asks MLX's own and turns null into
 * an exception, which mlx-c reports as an error. Linked into libmlxc.so. */

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "mlx/allocator.h"

namespace mlx::core::allocator {
namespace {

Allocator& own() {
  using Get = Allocator& (*)();
  static const Get get = reinterpret_cast<Get>(
      dlsym(RTLD_NEXT, "_ZN3mlx4core9allocator9allocatorEv"));
  return get();
}

struct Checked : Allocator {
  Buffer malloc(size_t size) override {
    Buffer buffer = own().malloc(size);
    if (size > 0 && !buffer.ptr()) {
      throw std::runtime_error("the system refuses " + std::to_string(size) +
                               " bytes of memory");
    }
    return buffer;
  }
  void free(Buffer buffer) override { own().free(buffer); }
  size_t size(Buffer buffer) const override { return own().size(buffer); }
  Buffer make_buffer(void* ptr, size_t size) override {
    return own().make_buffer(ptr, size);
  }
  void release(Buffer buffer) override { own().release(buffer); }
};

} // namespace

Allocator& allocator() {
  // Never destroyed: arrays may be freed after the end of main.
  static auto* checked = new Checked;
  return *checked;
}

} // namespace mlx::core::allocator
