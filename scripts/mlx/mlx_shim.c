/* What libmlx and mlx-rs miss on Linux. Linked into libmlxc.so. */

#include <cblas.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* libmlx calls three functions of CBLAS. libmlxc.so comes before libmlx's netlib
 * BLAS in the dynamic linker's search order, so these definitions win; they pass
 * the calls on to OpenBLAS, whose build for SciPy prefixes every symbol.
 *
 * OpenBLAS's threads wait for each other at the end of every product, spinning. On a
 * machine that is busy otherwise, a product of a few microseconds then takes a whole
 * time slice: a clip of a small model took 60 s instead of 1.4 s. Products below
 * about a millisecond of one core's work therefore stay on one thread.
 *
 * OpenBLAS has one number of threads for the whole process, and MLX calls from several
 * threads. A number that another call changes halfway would decide how a product is
 * split, and with some kernels its last bits. So a large product has OpenBLAS for
 * itself, and the number depends on the product's shape alone. */
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int threads = 1;

static void read_threads(void) {
  threads = scipy_openblas_get_num_threads();
  scipy_openblas_set_num_threads(1);
}

static void enter(int large) {
  pthread_once(&once, read_threads);
  if (!large) {
    pthread_rwlock_rdlock(&gate);
    return;
  }
  pthread_rwlock_wrlock(&gate);
  scipy_openblas_set_num_threads(threads);
}

static void leave(int large) {
  if (large) scipy_openblas_set_num_threads(1);
  pthread_rwlock_unlock(&gate);
}

static int is_large(blasint m, blasint n, blasint k) {
  return (double)m * n * k >= 0x1p26;
}

/* The kernels that OpenBLAS has chosen for this processor, such as "Haswell". */
const char *mlx_shim_blas_kernels(void) { return scipy_openblas_get_corename(); }

/* Sets how many threads a large product is given; 0 keeps OpenBLAS's own number. Returns
 * the number in force. */
int mlx_shim_blas_threads(int wanted) {
  pthread_once(&once, read_threads);
  pthread_rwlock_wrlock(&gate);
  if (wanted > 0) threads = wanted;
  const int now = threads;
  pthread_rwlock_unlock(&gate);
  return now;
}

void cblas_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 float alpha, const float *a, blasint lda, const float *b,
                 blasint ldb, float beta, float *c, blasint ldc) {
  const int large = is_large(m, n, k);
  enter(large);
  scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
  leave(large);
}

void cblas_dgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 double alpha, const double *a, blasint lda, const double *b,
                 blasint ldb, double beta, double *c, blasint ldc) {
  const int large = is_large(m, n, k);
  enter(large);
  scipy_cblas_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
  leave(large);
}

void cblas_cgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                 enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                 const void *alpha, const void *a, blasint lda, const void *b,
                 blasint ldb, const void *beta, void *c, blasint ldc) {
  const int large = is_large(m, n, k);
  enter(large);
  scipy_cblas_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
  leave(large);
}

/* As cblas_sgemm, on the calling thread however large: for a program that has threads of its own. */
void mlx_shim_sgemm(enum CBLAS_ORDER order, enum CBLAS_TRANSPOSE trans_a,
                    enum CBLAS_TRANSPOSE trans_b, blasint m, blasint n, blasint k,
                    float alpha, const float *a, blasint lda, const float *b,
                    blasint ldb, float beta, float *c, blasint ldc) {
  enter(0);
  scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb,
                    beta, c, ldc);
  leave(0);
}

/* mlx-rs seeds its default random state with this function of macOS. */
uint64_t mach_approximate_time(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
