/* Regions of interest read from feature maps; kernels/vision/reference.py defines them. Layouts:
   x [B,C,H,W], rois [R,5] = image, x0, y0, x1, y1, y [R,C,bins_y,bins_x]. */
#include "lanes.h"
#include <math.h>

typedef struct {
    int64_t images, channels, height, width, rois, bins_y, bins_x, samples, aligned;
    double scale;
} regions;

/* Where the bins of one axis read: taps [bin * most ... + count[bin]) */
typedef struct {
    int32_t *count, *at;
    float *weight;
    int64_t most;
} axis;

/* A bin's samples, each between two pixels; neighbours that read the same pixel share a tap. */
static void bin_taps(axis *a, int64_t bin, float start, float size, int64_t samples,
                     int64_t pixels) {
    int32_t *at = a->at + bin * a->most, n = 0;
    float *weight = a->weight + bin * a->most, share = 1 / (float)samples;
    for (int64_t s = 0; s < samples; s++) {
        float p = start + ((float)bin + ((float)s + 0.5f) / (float)samples) * size;
        if (!(p >= -1 && p <= (float)pixels)) continue; /* NaN, too */
        p = p > 0 ? p : 0;
        p = p < (float)(pixels - 1) ? p : (float)(pixels - 1);
        int32_t low = (int32_t)p;
        float part = p - (float)low;
        for (int side = 0; side < 2; side++) {
            int32_t pixel = low + side;
            float w = side ? part : 1 - part;
            if (pixel >= pixels) continue; /* its weight is 0 */
            int32_t same = n;
            for (int32_t t = n; t-- > 0 && t >= n - 2;)
                if (at[t] == pixel) same = t;
            if (same == n) at[n] = pixel, weight[n] = 0, n++;
            weight[same] += w * share;
        }
    }
    a->count[bin] = n;
}

static int64_t sample_count(float size, int64_t asked) {
    if (asked > 0) return asked;
    float n = ceilf(size);
    return n > 1 ? n < 4096 ? (int64_t)n : 4096 : 1;
}

static void find_axis(axis *a, const regions *g, float low, float high, int64_t bins,
                      int64_t pixels) {
    float scale = (float)g->scale, shift = g->aligned ? 0.5f : 0;
    float start = low * scale - shift, length = high * scale - shift - start;
    float least = g->aligned ? 0 : 1;
    length = length > least ? length : least;
    float size = length / (float)bins;
    int64_t samples = sample_count(size, g->samples);
    for (int64_t bin = 0; bin < bins; bin++) bin_taps(a, bin, start, size, samples, pixels);
}

/* Samples of a bin may share pixels, so a bin never has more taps than pixels or 2 per sample. */
static int64_t most_taps(const regions *g, int64_t pixels) {
    int64_t all = pixels + 1, asked = 2 * g->samples;
    return g->samples > 0 && asked < all ? asked : all;
}

static int open_axis(axis *a, int64_t bins, int64_t most) {
    a->most = most;
    a->count = malloc((size_t)(bins * (1 + 2 * most)) * 4 + 1);
    if (!a->count) return -ENOMEM;
    a->at = a->count + bins, a->weight = (float *)(a->at + bins * most);
    return 0;
}

/* Bins of one region and LANES channels: bin by bin into `bins`, or from there into the image. */
CLONES static void read_bins(const float *restrict image, float *restrict bins, const axis *y,
                             const axis *x, const regions *g) {
    for (int64_t i = 0; i < g->bins_y; i++)
        for (int64_t j = 0; j < g->bins_x; j++) {
            float sum[LANES] = {0};
            for (int32_t t = 0; t < x->count[j]; t++) {
                float column[LANES] = {0};
                const float *from = image + (size_t)x->at[j * x->most + t] * LANES;
                for (int32_t s = 0; s < y->count[i]; s++)
                    gain(column, from + (size_t)(y->at[i * y->most + s] * g->width) * LANES,
                         y->weight[i * y->most + s]);
                gain(sum, column, x->weight[j * x->most + t]);
            }
            float *bin = bins + (i * g->bins_x + j) * LANES;
            for (size_t l = 0; l < LANES; l++) bin[l] = sum[l];
        }
}

CLONES static void write_bins(float *restrict image, const float *restrict bins, const axis *y,
                              const axis *x, const regions *g) {
    for (int64_t i = 0; i < g->bins_y; i++)
        for (int64_t j = 0; j < g->bins_x; j++)
            for (int32_t t = 0; t < x->count[j]; t++) {
                float column[LANES] = {0};
                float *to = image + (size_t)x->at[j * x->most + t] * LANES;
                gain(column, bins + (i * g->bins_x + j) * LANES, x->weight[j * x->most + t]);
                for (int32_t s = 0; s < y->count[i]; s++)
                    gain(to + (size_t)(y->at[i * y->most + s] * g->width) * LANES, column,
                         y->weight[i * y->most + s]);
            }
}

/* Pixels [low, high) of a quantised bin; half away from zero, as the first implementation. */
static void pool_bin(const regions *g, float from, float to, int64_t bin, int64_t bins,
                     int64_t pixels, int64_t *low, int64_t *high) {
    float scale = (float)g->scale, start = roundf(from * scale), end = roundf(to * scale);
    float length = end - start + 1 > 1 ? end - start + 1 : 1, size = length / (float)bins;
    float first = floorf((float)bin * size) + start, last = ceilf((float)(bin + 1) * size) + start;
    float most = (float)pixels;
    *low = first > 0 ? first < most ? (int64_t)first : pixels : 0;
    *high = last > 0 ? last < most ? (int64_t)last : pixels : 0;
}

/* The largest value of each lane and where it is, the first of equals; -1 in an empty bin. */
CLONES static void largest(const float *restrict image, int64_t width, const int64_t *box,
                           float *restrict best, int32_t *restrict where) {
    for (size_t l = 0; l < LANES; l++) best[l] = 0, where[l] = -1;
    for (int64_t i = box[0]; i < box[1]; i++)
        for (int64_t j = box[2]; j < box[3]; j++) {
            const float *pixel = image + (i * width + j) * LANES;
            int32_t at = (int32_t)(i * width + j);
            for (size_t l = 0; l < LANES; l++) {
                int more = (where[l] < 0) | (pixel[l] > best[l]) | (pixel[l] != pixel[l]);
                best[l] = more ? pixel[l] : best[l];
                where[l] = more ? at : where[l];
            }
        }
}

/* With `grad`, bins go to the image's gradient; without, the image's maxima go to bins. */
static void pool(const regions *g, const float *roi, const float *image, float *grad, float *bins) {
    for (int64_t i = 0; i < g->bins_y; i++)
        for (int64_t j = 0; j < g->bins_x; j++) {
            float best[LANES], *bin = bins + (i * g->bins_x + j) * LANES;
            int32_t where[LANES];
            int64_t box[4];
            pool_bin(g, roi[2], roi[4], i, g->bins_y, g->height, &box[0], &box[1]);
            pool_bin(g, roi[1], roi[3], j, g->bins_x, g->width, &box[2], &box[3]);
            largest(image, g->width, box, best, where);
            for (size_t l = 0; l < LANES; l++) {
                if (!grad) bin[l] = best[l];
                else if (where[l] >= 0) grad[(size_t)where[l] * LANES + l] += bin[l];
            }
        }
}

/* The memory one thread works in: LANES planes, their gradient, the bins, and both axes. */
typedef struct {
    float *image, *grad, *bins;
    axis y, x;
} desk;

static int open_desk(desk *d, const regions *g) {
    size_t plane = (size_t)(g->height * g->width), bins = (size_t)(g->bins_y * g->bins_x);
    *d = (desk){.image = calloc((2 * plane + bins) * LANES + 1, sizeof(float))};
    d->grad = d->image ? d->image + plane * LANES : NULL;
    d->bins = d->image ? d->grad + plane * LANES : NULL;
    if (d->image && !open_axis(&d->y, g->bins_y, most_taps(g, g->height)) &&
        !open_axis(&d->x, g->bins_x, most_taps(g, g->width)))
        return 0;
    return -ENOMEM;
}

static void close_desk(desk *d) { free(d->image), free(d->y.count), free(d->x.count); }

static void find_axes(desk *d, const regions *g, const float *roi) {
    find_axis(&d->y, g, roi[2], roi[4], g->bins_y, g->height);
    find_axis(&d->x, g, roi[1], roi[3], g->bins_x, g->width);
}

static void one_roi(desk *d, const regions *g, const float *roi, float *y, size_t lanes,
                    int backward, int largest_only) {
    size_t bins = (size_t)(g->bins_y * g->bins_x);
    if (backward) dlp_interleave(d->bins, y, bins, lanes);
    if (largest_only) pool(g, roi, d->image, backward ? d->grad : NULL, d->bins);
    else {
        find_axes(d, g, roi);
        if (backward) write_bins(d->grad, d->bins, &d->y, &d->x, g);
        else read_bins(d->image, d->bins, &d->y, &d->x, g);
    }
    if (!backward) dlp_separate(y, d->bins, bins, lanes);
}

size_t dlp_roi_parts(const regions *g) {
    return (size_t)g->images * (((size_t)g->channels + LANES - 1) / LANES);
}

/* Parts [begin, end) of dlp_roi_parts: some channels of one image with all its regions. y is
   filled; or, with x_grad, y holds the gradient and x_grad is filled. `most`: pool maxima.
   Aligning backward needs no x. Returns 0 or -errno. */
int dlp_roi(const regions *g, const float *x, const float *rois, float *y, float *x_grad, int most,
            size_t begin, size_t end) {
    size_t plane = (size_t)(g->height * g->width), bins = (size_t)(g->bins_y * g->bins_x);
    size_t channels = (size_t)g->channels, blocks = (channels + LANES - 1) / LANES;
    desk d;
    int failed = open_desk(&d, g);
    for (size_t part = begin; !failed && part < end; part++) {
        size_t b = part / blocks, first = part % blocks * LANES;
        size_t lanes = fewer(channels - first, LANES), channel = b * channels + first;
        if (!x_grad || most) dlp_interleave(d.image, x + channel * plane, plane, lanes);
        for (size_t i = 0; x_grad && i < plane * LANES; i++) d.grad[i] = 0;
        for (size_t r = 0; r < (size_t)g->rois; r++)
            if (rois[5 * r] == (float)b)
                one_roi(&d, g, rois + 5 * r, y + (r * channels + first) * bins, lanes, !!x_grad,
                        most);
        if (x_grad) dlp_separate(x_grad + channel * plane, d.grad, plane, lanes);
    }
    close_desk(&d);
    return failed;
}
