/* A small dense product, for rules and optimizers that work on matrices inside the box. */
#include "dlp.h"

enum { DEPTH = 128, ROWS = 4, WIDTH = 32 }; /* a panel of B, DEPTH x WIDTH, is 16 KiB */

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Copy a panel side by side, filled up with zeros: rows of B a power of two apart would fight for
   the same few lines of the cache. */
CLONES static void gather(float *restrict panel, const float *restrict b, size_t depth, size_t n,
                          size_t width) {
    for (size_t l = 0; l < depth; l++)
        for (size_t j = 0; j < WIDTH; j++) panel[l * WIDTH + j] = j < width ? b[l * n + j] : 0;
}

/* Each element is added up over k in ascending order, from zero for every DEPTH of them: the
   same bits on every processor. Without FMA, as everywhere here. */
CLONES static void tile(float *restrict sum, const float *const *a, const float *restrict panel,
                        size_t depth) {
    float acc[ROWS][WIDTH] = {{0}};
    for (size_t l = 0; l < depth; l++)
        for (size_t r = 0; r < ROWS; r++)
            for (size_t j = 0; j < WIDTH; j++) acc[r][j] += a[r][l] * panel[l * WIDTH + j];
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < WIDTH; j++) sum[r * WIDTH + j] = acc[r][j];
}

CLONES static void add_row(float *restrict c, const float *restrict sum, size_t n, float alpha) {
    for (size_t j = 0; j < n; j++) c[j] += alpha * sum[j];
}

/* As in BLAS, beta = 0 forgets whatever C held, NaN too. */
CLONES static void scale(float *c, size_t size, float beta) {
    for (size_t i = 0; i < size; i++) c[i] = beta != 0 ? beta * c[i] : 0;
}

/* C = alpha A B + beta C, row-major: A is m x k, B is k x n. C must not overlap A or B. */
void dlp_matrix(float *c, const float *a, const float *b, size_t m, size_t k, size_t n, float alpha,
                float beta) {
    float panel[DEPTH * WIDTH], sum[ROWS * WIDTH];
    scale(c, m * n, beta);
    for (size_t l = 0; l < k; l += DEPTH)
        for (size_t j = 0; j < n; j += WIDTH) {
            size_t depth = least(k - l, DEPTH), width = least(n - j, WIDTH);
            gather(panel, b + l * n + j, depth, n, width);
            for (size_t i = 0; i < m; i += ROWS) {
                size_t rows = least(m - i, ROWS);
                const float *left[ROWS]; /* the last row stands in for those that are missing */
                for (size_t r = 0; r < ROWS; r++) left[r] = a + (i + least(r, rows - 1)) * k + l;
                tile(sum, left, panel, depth);
                for (size_t r = 0; r < rows; r++)
                    add_row(c + (i + r) * n + j, sum + r * WIDTH, width, alpha);
            }
        }
}
