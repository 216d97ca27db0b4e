/* What libmlx and mlx-rs miss on Linux. Linked into libmlxc.so. */

#include <cblas.h>
#include <stdint.h>
#include <time.h>

/* libmlx calls three functions of CBLAS. libmlxc.so comes before libmlx's netlib
 * BLAS in the dynamic linker's search order, so these definitions win; they pass
 * the calls on to OpenBLAS, whose build for SciPy prefixes every symbol. */

/* OpenBLAS's threads wait for each other at the end of every product, spinning. On a
 * machine that is busy otherwise, a product of a few microseconds then takes a whole
 * time slice: a clip of a small model took 60 s instead of 1.4 s. Products below
 * about a millisecond of one core's work therefore stay on one thread. */
static void choose_threads(blasint m, blasint n, blasint k) {
  static int all = 0, now = 0;
  if (all == 0) all = now = scipy_openblas_get_num_threads();
  const int wanted = (double)m * n * k < 0x1p26 ? 1 : all;
  if (wanted != now) scipy_openblas_set_num_threads(now = wanted);
}

void cblas_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 float alpha, const float *a, blasint lda, const float *b,
                 blasint ldb, float beta, float *c, blasint ldc) {
  choose_threads(m, n, k);
  scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
}

void cblas_dgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 double alpha, const double *a, blasint lda, const double *b,
                 blasint ldb, double beta, double *c, blasint ldc) {
  choose_threads(m, n, k);
  scipy_cblas_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
}

void cblas_cgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 const void *alpha, const void *a, blasint lda, const void *b,
                 blasint ldb, const void *beta, void *c, blasint ldc) {
  choose_threads(m, n, k);
  scipy_cblas_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
}

/* mlx-rs seeds its default random state with this function of macOS. */
uint64_t mach_approximate_time(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
