/* Deformable sampling: every kernel position of every output pixel reads where its offset says.
   kernels/vision/reference.py defines it. Layouts: x [B,C,H,W], offset [B,2K,P] with y before x,
   columns [B,C,K,P]; K kernel positions, P output pixels. */
#include "lanes.h"
#include <math.h>

typedef struct {
    int64_t channels, height, width, rows, columns; /* of x; of the output */
    int64_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
    int64_t integer; /* offsets are rounded, half to even: one tap instead of four */
} lattice;

/* Where up to TILE pixels of one output row read: four corners, clamped into the image; a corner
   outside has weight 0. slope_y and slope_x: the weights' derivatives by the position. */
typedef struct {
    int32_t at[4][TILE];
    float weight[4][TILE], slope_y[4][TILE], slope_x[4][TILE];
} taps;

INLINE int32_t clamp(int32_t i, int32_t size) { return i < 0 ? 0 : i < size ? i : size - 1; }

INLINE void find_taps(taps *t, const lattice *g, const float *dy, const float *dx, float y0,
                      float x0, size_t n) {
    const float height = (float)g->height, width = (float)g->width;
    const int32_t rows = (int32_t)g->height, columns = (int32_t)g->width;
    const float step = (float)g->stride_x;
    const int rounded = g->integer != 0;
    for (size_t q = 0; q < n; q++) {
        float y = y0 + (rounded ? rintf(dy[q]) : dy[q]);
        float x = x0 + step * (float)(int32_t)q + (rounded ? rintf(dx[q]) : dx[q]);
        int in = (y > -1) & (y < height) & (x > -1) & (x < width); /* not so for NaN */
        y = in ? y : 0, x = in ? x : 0;
        float top = floorf(y), left = floorf(x), fy = y - top, fx = x - left;
        int32_t i = (int32_t)top, j = (int32_t)left;
        float up = (in & (i >= 0)) ? 1 : 0, down = (in & (i + 1 < rows)) ? 1 : 0;
        float west = j >= 0 ? 1 : 0, east = j + 1 < columns ? 1 : 0;
        float a = up * west, b = up * east, c = down * west, d = down * east;
        int32_t i0 = clamp(i, rows) * columns, i1 = clamp(i + 1, rows) * columns;
        int32_t j0 = clamp(j, columns), j1 = clamp(j + 1, columns);
        t->at[0][q] = i0 + j0, t->at[1][q] = i0 + j1, t->at[2][q] = i1 + j0, t->at[3][q] = i1 + j1;
        t->weight[0][q] = a * (1 - fy) * (1 - fx), t->weight[1][q] = b * (1 - fy) * fx;
        t->weight[2][q] = c * fy * (1 - fx), t->weight[3][q] = d * fy * fx;
        t->slope_y[0][q] = -a * (1 - fx), t->slope_y[1][q] = -b * fx;
        t->slope_y[2][q] = c * (1 - fx), t->slope_y[3][q] = d * fx;
        t->slope_x[0][q] = -a * (1 - fy), t->slope_x[1][q] = b * (1 - fy);
        t->slope_x[2][q] = -c * fy, t->slope_x[3][q] = d * fy;
    }
}

/* Up to TILE pixels side by side under one kernel position, and where they read. */
typedef struct {
    int64_t k, place, n;
    taps t;
} tile;

INLINE int64_t tiles(const lattice *g) {
    return g->kernel_y * g->kernel_x * g->rows * ((g->columns + TILE - 1) / TILE);
}

INLINE void find_tile(tile *s, const lattice *g, const float *offset, int64_t number) {
    int64_t wide = (g->columns + TILE - 1) / TILE, pixels = g->rows * g->columns;
    int64_t column = number % wide * TILE, row = number / wide % g->rows;
    int64_t k = s->k = number / wide / g->rows;
    s->place = row * g->columns + column;
    s->n = (int64_t)fewer((size_t)(g->columns - column), TILE);
    int64_t y = row * g->stride_y - g->pad_y + k / g->kernel_x * g->dilation_y;
    int64_t x = column * g->stride_x - g->pad_x + k % g->kernel_x * g->dilation_x;
    const float *dy = offset + 2 * k * pixels + s->place;
    find_taps(&s->t, g, dy, dy + pixels, (float)y, (float)x, (size_t)s->n);
}

/* LANES channels of one image. */
CLONES static void sample(const lattice *g, const float *restrict image,
                          const float *restrict offset, float *restrict columns, size_t lanes) {
    const int64_t pixels = g->rows * g->columns, stride = pixels * g->kernel_y * g->kernel_x;
    const int corners = g->integer ? 1 : 4;
    tile s;
    for (int64_t number = 0; number < tiles(g); number++) {
        float sum[TILE][LANES] = {{0}};
        find_tile(&s, g, offset, number);
        for (int64_t q = 0; q < s.n; q++)
            for (int i = 0; i < corners; i++)
                gain(sum[q], image + (size_t)s.t.at[i][q] * LANES, s.t.weight[i][q]);
        for (size_t l = 0; l < lanes; l++)
            for (int64_t q = 0; q < s.n; q++)
                columns[(int64_t)l * stride + s.k * pixels + s.place + q] = sum[q][l];
    }
}

/* What the columns' gradient says about LANES channels of the image and, unless offset_grad is
   NULL, about the offset. */
CLONES static void spread(const lattice *g, const float *restrict image,
                          const float *restrict offset, const float *restrict columns,
                          float *restrict image_grad, float *restrict offset_grad, size_t lanes) {
    const int64_t pixels = g->rows * g->columns, stride = pixels * g->kernel_y * g->kernel_x;
    const int corners = g->integer ? 1 : 4;
    tile s;
    for (int64_t number = 0; number < tiles(g); number++) {
        float sum[TILE][LANES] = {{0}};
        find_tile(&s, g, offset, number);
        for (size_t l = 0; l < lanes; l++)
            for (int64_t q = 0; q < s.n; q++)
                sum[q][l] = columns[(int64_t)l * stride + s.k * pixels + s.place + q];
        for (int64_t q = 0; q < s.n; q++) {
            float along_y[LANES] = {0}, along_x[LANES] = {0};
            for (int i = 0; i < corners; i++) {
                size_t at = (size_t)s.t.at[i][q] * LANES;
                gain(image_grad + at, sum[q], s.t.weight[i][q]);
                if (!offset_grad) continue;
                gain(along_y, image + at, s.t.slope_y[i][q]);
                gain(along_x, image + at, s.t.slope_x[i][q]);
            }
            if (!offset_grad) continue;
            for (size_t l = 0; l < LANES; l++) along_y[l] *= sum[q][l], along_x[l] *= sum[q][l];
            float *to = offset_grad + 2 * s.k * pixels + s.place + q;
            to[0] += total(along_y), to[pixels] += total(along_x);
        }
    }
}

static size_t blocks(const lattice *g) { return ((size_t)g->channels + LANES - 1) / LANES; }

size_t dlp_deform_parts(const lattice *g) { return blocks(g); }

/* Fill the columns of parts [begin, end) of all images; each image has dlp_deform_parts of them,
   and no two write the same memory. Returns 0 or -errno. */
int dlp_deform_sample(const lattice *g, const float *x, const float *offset, float *columns,
                      size_t begin, size_t end) {
    size_t plane = (size_t)(g->height * g->width), pixels = (size_t)(g->rows * g->columns);
    size_t kernel = (size_t)(g->kernel_y * g->kernel_x);
    float *image = malloc(plane * LANES * sizeof *image + 1);
    if (!image) return -ENOMEM;
    for (size_t part = begin; part < end; part++) {
        size_t b = part / blocks(g), first = part % blocks(g) * LANES;
        size_t lanes = fewer((size_t)g->channels - first, LANES);
        size_t channel = b * (size_t)g->channels + first;
        dlp_interleave(image, x + channel * plane, plane, lanes);
        sample(g, image, offset + b * 2 * kernel * pixels, columns + channel * kernel * pixels,
               lanes);
    }
    free(image);
    return 0;
}

/* Gradients of images [begin, end). x_grad is overwritten; offset_grad, all zero before, is NULL
   when offsets learn nothing. Returns 0 or -errno. */
int dlp_deform_spread(const lattice *g, const float *x, const float *offset, const float *columns,
                      float *x_grad, float *offset_grad, size_t begin, size_t end) {
    size_t plane = (size_t)(g->height * g->width), pixels = (size_t)(g->rows * g->columns);
    size_t kernel = (size_t)(g->kernel_y * g->kernel_x), floats = plane * LANES;
    float *image = calloc(2 * floats + 1, sizeof *image);
    if (!image) return -ENOMEM;
    for (size_t part = begin * blocks(g); part < end * blocks(g); part++) {
        size_t b = part / blocks(g), first = part % blocks(g) * LANES;
        size_t lanes = fewer((size_t)g->channels - first, LANES);
        size_t channel = b * (size_t)g->channels + first, start = b * 2 * kernel * pixels;
        dlp_interleave(image, x + channel * plane, plane, lanes);
        for (size_t i = 0; i < floats; i++) image[floats + i] = 0;
        spread(g, image, offset + start, columns + channel * kernel * pixels, image + floats,
               offset_grad ? offset_grad + start : NULL, lanes);
        dlp_separate(x_grad + channel * plane, image + floats, plane, lanes);
    }
    free(image);
    return 0;
}
