/* The vision kernels under sanitizers: regions, offsets and boxes of any value, in blocks of the
   exact size. native_check.c includes this. */

typedef struct {
    int64_t channels, height, width, rows, columns;
    int64_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, integer;
} lattice;
typedef struct {
    int64_t images, channels, height, width, rois, bins_y, bins_x, samples, aligned;
    double scale;
} regions;

size_t dlp_deform_parts(const lattice *g);
int dlp_deform_sample(const lattice *g, const float *x, const float *offset, float *columns,
                      size_t begin, size_t end);
int dlp_deform_spread(const lattice *g, const float *x, const float *offset, const float *columns,
                      float *x_grad, float *offset_grad, size_t begin, size_t end);
size_t dlp_roi_parts(const regions *g);
int dlp_roi(const regions *g, const float *x, const float *rois, float *y, float *x_grad, int most,
            size_t begin, size_t end);
int dlp_nms(const float *planes, size_t n, const int64_t *ends, size_t groups, float limit,
            int32_t *gone);
ssize_t dlp_soft_nms(const float *planes, float *score, size_t n, float limit, float sigma,
                     float least, int64_t *kept, float *worth);
int dlp_segment(const float *weight, const int64_t *from, const int64_t *to, size_t edges, size_t n,
                double scale, int64_t least, int64_t *region);

/* Mostly near the image, sometimes anything that a float may be. */
static void near_image(float *v, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (v[i] == v[i] && v[i] < 1001 && v[i] > -1001) v[i] *= 0.02f;
}

static void check_deform(void) {
    lattice g = {.channels = (int64_t)any(19) + 1, .height = (int64_t)any(6) + 1,
                 .width = (int64_t)any(20) + 1, .rows = (int64_t)any(4) + 1,
                 .columns = (int64_t)any(20) + 1, .kernel_y = (int64_t)any(3) + 1,
                 .kernel_x = 2, .stride_y = 1, .stride_x = 2, .pad_y = 1, .pad_x = 1,
                 .dilation_y = 1, .dilation_x = 2, .integer = (int64_t)any(2)};
    size_t kernel = (size_t)(g.kernel_y * g.kernel_x), pixels = (size_t)(g.rows * g.columns);
    size_t image = 2 * (size_t)(g.channels * g.height * g.width);
    size_t cols = 2 * (size_t)g.channels * kernel * pixels, moved = 4 * kernel * pixels;
    float *x = vector(image), *offset = vector(moved), *columns = filled(cols, 0);
    float *x_grad = filled(image, 0), *offset_grad = filled(moved, 0);
    near_image(offset, moved);
    REQUIRE(!dlp_deform_sample(&g, x, offset, columns, 0, 2 * dlp_deform_parts(&g)));
    float *learnt = g.integer ? NULL : offset_grad;
    REQUIRE(!dlp_deform_spread(&g, x, offset, columns, x_grad, learnt, 0, 2));
    free(x), free(offset), free(columns), free(x_grad), free(offset_grad);
}

static void check_regions(void) {
    regions g = {.images = 2, .channels = (int64_t)any(19) + 1, .height = (int64_t)any(6) + 1,
                 .width = (int64_t)any(20) + 1, .rois = (int64_t)any(6),
                 .bins_y = (int64_t)any(3) + 1, .bins_x = 2,
                 .samples = (int64_t)any(4), .aligned = (int64_t)any(2), .scale = 0.5};
    size_t image = 2 * (size_t)(g.channels * g.height * g.width), rois = (size_t)g.rois * 5;
    size_t bins = (size_t)(g.rois * g.channels * g.bins_y * g.bins_x);
    float *x = vector(image), *roi = vector(rois), *y = filled(bins, 0), *grad = filled(image, 0);
    near_image(roi, rois);
    for (size_t r = 0; r < rois; r += 5) roi[r] = (float)any(3);
    for (int most = 0; most < 2; most++) {
        REQUIRE(!dlp_roi(&g, x, roi, y, NULL, most, 0, dlp_roi_parts(&g)));
        REQUIRE(!dlp_roi(&g, x, roi, y, grad, most, 0, dlp_roi_parts(&g)));
    }
    free(x), free(roi), free(y), free(grad);
}

static void check_boxes(void) {
    size_t n = any(40);
    float *planes = vector(4 * n), *score = vector(n), *worth = filled(n, 0);
    int64_t ends[2] = {(int64_t)any(n + 1), (int64_t)n}, *kept = calloc(n, sizeof *kept);
    int32_t *gone = calloc(n, sizeof *gone);
    REQUIRE(!dlp_nms(planes, n, ends, 2, 0.3f, gone));
    ssize_t soft = dlp_soft_nms(planes, score, n, 0.3f, any(2) ? 0.5f : 0, 0.01f, kept, worth);
    REQUIRE(soft >= 0 && soft <= (ssize_t)n);
    free(planes), free(score), free(worth), free(kept), free(gone);
}

static void check_regions_of_pixels(void) {
    size_t n = any(40) + 1, edges = any(80);
    float *weight = vector(edges);
    int64_t *from = calloc(edges, sizeof *from), *to = calloc(edges, sizeof *to);
    int64_t *region = calloc(n, sizeof *region);
    for (size_t e = 0; e < edges; e++) from[e] = (int64_t)any(n), to[e] = (int64_t)any(n);
    REQUIRE(!dlp_segment(weight, from, to, edges, n, 1.5, (int64_t)any(5), region));
    for (size_t i = 0; i < n; i++) REQUIRE(region[region[i]] == region[i]);
    free(weight), free(from), free(to), free(region);
}

static void check_vision(int times) {
    for (int i = 0; i < times; i++) {
        check_deform(), check_regions(), check_boxes(), check_regions_of_pixels();
    }
}
