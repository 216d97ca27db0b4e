/* Times float32 matrix products in a shared library's cblas_sgemm.
 *
 * Usage: gemm_bench LIBRARY [SIZE [SECONDS]]
 * Prints the best run in GFLOP/s and the name of OpenBLAS's kernel set ("-" if
 * the library does not tell), as in "270.3 SAPPHIRERAPIDS".
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* CBLAS's ABI: the order and the transpositions are C enums. */
enum { ROW_MAJOR = 101, NO_TRANS = 111 };
typedef void sgemm_fn(int order, int trans_a, int trans_b, int m, int n, int k,
                      float alpha, const float *a, int lda, const float *b,
                      int ldb, float beta, float *c, int ldc);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char *core_name(void *library) {
  const char *symbols[] = {"openblas_get_corename", "scipy_openblas_get_corename"};
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    char *(*get)(void) = (char *(*)(void))dlsym(library, symbols[i]);
    if (get != NULL) return get();
  }
  return "-";
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s LIBRARY [SIZE [SECONDS]]\n", argv[0]);
    return 2;
  }
  int n = argc > 2 ? atoi(argv[2]) : 2048;
  double seconds = argc > 3 ? atof(argv[3]) : 2.0;
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  sgemm_fn *sgemm = library ? (sgemm_fn *)dlsym(library, "cblas_sgemm") : NULL;
  if (sgemm == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }

  size_t count = (size_t)n * (size_t)n;
  float *a = malloc(count * sizeof *a), *b = malloc(count * sizeof *b);
  float *c = calloc(count, sizeof *c);
  if (n < 1 || a == NULL || b == NULL || c == NULL) {
    fprintf(stderr, "cannot allocate three %d x %d matrices\n", n, n);
    return 1;
  }
  for (size_t i = 0; i < count; i++) {
    a[i] = (float)(i % 7) - 3.0f;
    b[i] = (float)(i % 5) - 2.0f;
  }

  double best = 0.0, start = now();
  do {
    double before = now();
    sgemm(ROW_MAJOR, NO_TRANS, NO_TRANS, n, n, n, 1.0f, a, n, b, n, 0.0f, c, n);
    double rate = 2e-9 * n * n * n / (now() - before);
    if (rate > best) best = rate;
  } while (now() - start < seconds);
  printf("%.1f %s\n", best, core_name(library));
  return 0;
}
