/* Drives the C kernels under sanitizers (scripts/sanitize.sh): buffers of the exact size, hostile
   payloads, threads on one segment, streams over sockets. It checks what is cheap to know; what
   the numbers should be is checked in Python. */
#define _GNU_SOURCE
#include "formats.h"
#include "stream.c" /* for `update`, whose layout is its own */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void dlp_matrix(float *c, const float *a, const float *b, size_t m, size_t k, size_t n, float alpha,
                float beta);
void dlp_sum(float *y, float **x, size_t k, size_t n, float scale);
void dlp_average(float **x, size_t k, size_t n, float scale);
double dlp_norm(const float *x, size_t n);
size_t dlp_header_bytes(size_t floats);
int dlp_header_init(segment_header *h, size_t floats);
int dlp_read_cut(const segment *g, size_t start, size_t n, float *into);
void dlp_cut(segment_header *h, uint32_t cut);
size_t dlp_changed(const segment_header *h, uint64_t since, uint32_t *stripes, size_t most,
                   uint64_t *now);
int dlp_gated(const operation *o, const segment *const *where, const gate *g, void *x, float *z,
              size_t turn);
int64_t dlp_counter_add(counter *c, int64_t n);
int dlp_counter_wait(counter *c, int64_t at_least, int ms);
int dlp_left(counter *slot, int64_t cut, int ms);
int dlp_log_init(oplog *l);
void dlp_log_file(oplog *l, int file, uint64_t position);
uint64_t dlp_log_position(const oplog *l);

enum { CODES = OP_DELAY + 1, FORMATS = FORMAT_TOPK + 1, THREADS = 3, TIMES = 6 };

#define REQUIRE(truth) ((truth) ? (void)0 : failed(#truth, __LINE__))

static void failed(const char *what, int line) {
    fprintf(stderr, "native_check.c:%d: not so: %s\n", line, what);
    exit(2);
}

/* The sanitizer of threads (gcc 12) knows timedlock and not clocklock: it would take the lock for
   none. The linker puts this one in its place. */
int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock,
                                   const struct timespec *end) {
    struct timespec now, limit;
    clock_gettime(clock, &now);
    clock_gettime(CLOCK_REALTIME, &limit);
    int64_t ns = (end->tv_sec - now.tv_sec) * 1000000000LL + end->tv_nsec - now.tv_nsec;
    limit.tv_nsec += ns > 0 ? (long)ns : 0; /* less than a second */
    if (limit.tv_nsec >= 1000000000) limit.tv_sec++, limit.tv_nsec -= 1000000000;
    return pthread_mutex_timedlock(mutex, &limit);
}

/* ---- made-up data in blocks of the exact size: one byte too far is seen ---- */

static uint64_t seed = 88172645463325252u;

static uint64_t any(uint64_t below) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return below ? seed % below : 0;
}

static float *vector(size_t n) {
    static const float odd[] = {0.0f, -0.0f, 1e-45f, 3e38f, __builtin_inff(), __builtin_nanf("")};
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = any(50) ? (float)any(2000001) * 1e-3f - 1000.0f : odd[any(6)];
    return v;
}

static float *filled(size_t n, float value) {
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = value;
    return v;
}

static size_t some_size(void) {
    static const size_t edges[] = {0, 1, 2, 15, 17, 255, 256, 257, 1023, 1024, 1025, 4097};
    return any(2) ? edges[any(12)] : any(3000);
}

static void *packed(int format, const float *x, float *residual, size_t n, size_t entries) {
    void *payload = malloc(dlp_payload_bytes(format, n, entries));
    REQUIRE(dlp_pack(format, x, residual, payload, n, entries) == 0);
    REQUIRE(dlp_check_payload(format, payload, n, entries) == 0);
    return payload;
}

/* ---- operations and formats ---- */

static void apply_once(int code, int format) {
    size_t n = some_size(), entries = format == FORMAT_TOPK ? any(n + 1) : 0, at = any(n + 1);
    operation o = {.code = code, .format = format, .entries = entries};
    for (int i = 0; i < 8; i++) o.k[i] = (float)any(2000) * 1e-3f;
    float *v[5], *residual = vector(n);
    for (int i = 0; i < 5; i++) v[i] = vector(n);
    void *x = packed(format, v[3], any(2) ? residual : NULL, n, entries);
    dlp_apply(&o, v[0] + at, v[1] + at, v[2] + at, x, v[4], at, n - at);
    dlp_apply(&o, v[0], v[1], v[2], x, v[4], 0, at);
    dlp_unpack(format, x, v[0], at, n - at, entries);
    for (int i = 0; i < 5; i++) free(v[i]);
    free(residual);
    free(x);
}

static void check_operations(int rounds) {
    for (int code = 0; code < CODES; code++)
        for (int format = 0; format < FORMATS; format++)
            for (int i = 0; i < rounds; i++) apply_once(code, format);
    operation alone = {.code = OP_AXPY, .k = {1}};
    dlp_apply(&alone, NULL, NULL, NULL, NULL, NULL, 0, 0);
}

/* Positions that repeat, go back or lie outside: refused, and harmless if they are not. */
static void check_hostile(int rounds) {
    for (int i = 0; i < rounds; i++) {
        size_t entries = any(40), n = 1 + any(100), at = any(300), whole = at + n;
        uint32_t *payload = malloc(dlp_payload_bytes(FORMAT_TOPK, whole, entries));
        for (size_t j = 0; j < 2 * entries; j++)
            payload[j] = (uint32_t)any(any(2) ? 2 * whole : (uint64_t)1 << 32);
        int honest = entries <= whole;
        for (size_t j = 0; j < entries; j++)
            honest &= payload[j] < whole && (!j || payload[j] > payload[j - 1]);
        REQUIRE((dlp_check_payload(FORMAT_TOPK, payload, whole, entries) == 0) == honest);
        operation o = {(int)any(CODES), FORMAT_TOPK, entries, {1}};
        float *v[3] = {vector(n), vector(n), vector(n)}, *z = vector(whole);
        dlp_apply(&o, v[0], v[1], v[2], payload, z, at, n);
        dlp_unpack(FORMAT_TOPK, payload, v[0], at, n, entries);
        for (int j = 0; j < 3; j++) free(v[j]);
        free(z);
        free(payload);
    }
}

static void check_sums(int rounds) {
    for (int i = 0; i < rounds; i++) {
        size_t n = some_size(), m = any(40), k = any(140);
        float *x[3] = {vector(n), vector(n), vector(n)}, *y = vector(n);
        dlp_sum(y, x, 3, n, 0.5f);
        dlp_average(x, 3, n, 0.5f);
        REQUIRE(n == 0 || memcmp(x[0], y, n * sizeof *y) == 0);
        dlp_norm(y, n);
        size_t columns = any(70);
        float *a = vector(m * k), *b = vector(k * columns), *c = vector(m * columns);
        dlp_matrix(c, a, b, m, k, columns, 1.0f, (float)any(2));
        for (int j = 0; j < 3; j++) free(x[j]);
        free(y), free(a), free(b), free(c);
    }
}

/* ---- threads on one segment ---- */

enum { FLOATS = STRIPE + 3 * CHUNK + 100 };

static segment made_segment(void) {
    size_t head = dlp_header_bytes(FLOATS);
    segment g = {aligned_alloc(PAGE, head), filled(FLOATS, 0), filled(FLOATS, 0)};
    memset(g.h, 0, head);
    REQUIRE(dlp_header_init(g.h, FLOATS) == 0);
    return g;
}

static void free_segment(segment *g) { free(g->h), free(g->data), free(g->shadow); }

static counter epoch, shut, places[THREADS + 3];

typedef struct {
    const segment *const *where;
    int number;
    conduit *way;
    oplog *log;
} worker;

static void *add_ones(void *argument) {
    const worker *w = argument;
    operation o = {.code = OP_AXPY, .format = w->number % 2 ? FORMAT_BF16 : FORMAT_FP32, .k = {1}};
    float *ones = filled(FLOATS, 1);
    void *x = packed(o.format, ones, NULL, FLOATS, 0);
    for (int i = 0; i < TIMES; i++)
        REQUIRE(dlp_locked(&o, w->where, 0, FLOATS, x, NULL, 0, (size_t)(w->number + i),
                           i < TIMES / 2 ? 0 : 1) == 0);
    free(ones), free(x);
    return NULL;
}

/* Momentum in a second segment: two locks, always taken in the same order. */
static void *descend(void *argument) {
    const worker *w = argument;
    operation o = {.code = OP_SGD, .k = {0, 0.5f}};
    gate g = {&epoch, &shut, &places[w->number]};
    float *x = filled(FLOATS, 1);
    for (int i = 0; i < TIMES; i++)
        REQUIRE(dlp_gated(&o, w->where, &g, x, NULL, (size_t)i) == 0);
    REQUIRE(dlp_counter_wait(&epoch, 1, 60000));
    free(x);
    return NULL;
}

static void *look(void *argument) {
    const worker *w = argument;
    const segment *g = w->where[0];
    float *copy = filled(FLOATS, 0);
    uint32_t stripes[8];
    uint64_t since = 0, now;
    for (int i = 0; i < TIMES; i++) {
        if (i == 1) dlp_cut(g->h, 1), dlp_counter_add(&epoch, 1);
        for (int j = 0; i == 1 && j < THREADS + 3; j++) REQUIRE(dlp_left(&places[j], 1, 60000));
        REQUIRE(dlp_read_cut(g, 0, FLOATS, copy) == 0);
        REQUIRE(dlp_changed(g->h, since, stripes, 8, &now) <= g->h->stripes);
        since = now;
    }
    dlp_cut(g->h, 0);
    free(copy);
    return NULL;
}

static void check_threads(void) {
    segment y = made_segment(), s = made_segment();
    const segment *with[] = {&y, &s, NULL, NULL}, *without[] = {&y, NULL, NULL, NULL};
    pthread_t threads[THREADS + 3];
    worker workers[THREADS + 3];
    for (int i = 0; i < THREADS + 3; i++) {
        workers[i] = (worker){i > THREADS ? with : without, i, NULL, NULL};
        void *(*body)(void *) = i < THREADS ? add_ones : i == THREADS ? look : descend;
        REQUIRE(pthread_create(&threads[i], NULL, body, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS + 3; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < FLOATS; i++) REQUIRE(y.data[i] == THREADS * TIMES); /* the rate was 0 */
    free_segment(&y);
    free_segment(&s);
}

/* ---- streams: a box's thread for each worker, all on one segment and one log ---- */

typedef struct {
    int code, format;
    size_t start, n, entries;
    int refused;
} request;

static const request REQUESTS[] = {
    {OP_AXPY, FORMAT_FP32, 0, FLOATS, 0, 0},
    {OP_AXPY, FORMAT_BF16, 1, FLOATS - 1, 0, 0},
    {OP_AXPY, FORMAT_INT8, 256, FLOATS - 256, 0, 0},
    {OP_AXPY, FORMAT_TOPK, 77, STRIPE, 500, 0},
    {OP_AXPY, FORMAT_TOPK, 77, STRIPE, 500, 1},
    {OP_DIFFERENCE, FORMAT_FP32, 3, FLOATS - 3, 0, 0},
    {OP_FETCH, FORMAT_FP32, 0, FLOATS, 0, 0},
    {OP_COPY, FORMAT_FP16, 5, 1, 0, 0},
};
enum { KINDS = sizeof REQUESTS / sizeof *REQUESTS };

static int answers(const request *r) { return r->code == OP_DIFFERENCE || r->code == OP_FETCH; }

static void *serve(void *argument) {
    const worker *w = argument;
    for (int i = 0; i < KINDS; i++) {
        const request *r = &REQUESTS[i];
        operation o = {.code = r->code, .format = r->format, .entries = r->entries, .k = {0.5f}};
        size_t room = dlp_payload_bytes(r->format, CHUNK, r->entries);
        update u = {.o = o, .start = r->start, .n = r->n, .log = w->log, .head = "head",
                    .head_bytes = 4, .payload = malloc(room),
                    .answers = answers(r) ? filled(dlp_ring_floats(), 0) : NULL};
        REQUIRE(dlp_receive_apply(w->way, &u, w->where) == (r->refused ? -EINVAL : 0));
        REQUIRE(u.done == (r->refused ? 0 : r->n));
        free(u.payload), free(u.answers);
    }
    return NULL;
}

static void *ask(void *argument) {
    const worker *w = argument;
    for (int i = 0; i < KINDS; i++) {
        const request *r = &REQUESTS[i];
        float *x = filled(r->n, 1), *back = answers(r) ? filled(r->n, 0) : NULL;
        char *payload = packed(r->format, x, NULL, r->n, r->entries);
        if (r->refused) ((uint32_t *)payload)[r->entries - 1] = (uint32_t)r->n;
        size_t done[3] = {0}, bytes = dlp_payload_bytes(r->format, r->n, r->entries);
        int moved = 0;
        while (!moved)
            moved = dlp_exchange(w->way, OP_NONE, payload, bytes, (char *)back,
                                 back ? r->n * sizeof *back : 0, 1000, done);
        REQUIRE(moved == 1);
        free(x), free(back), free(payload);
    }
    return NULL;
}

static slots *made_row(void) {
    size_t bytes = dlp_slots_bytes(4, 4 * PAGE);
    slots *row = aligned_alloc(PAGE, bytes);
    memset(row, 0, bytes);
    dlp_slots_init(row, 4, 4 * PAGE);
    return row;
}

/* Make both ends of a socket, or of two rows of slots. */
static void connect_ends(conduit *a, conduit *b, int memory) {
    int ends[2] = {-1, -1};
    if (!memory) REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    slots *there = memory ? made_row() : NULL, *back = memory ? made_row() : NULL;
    *a = (conduit){ends[0], -1, there, back, memory ? &back->bell : NULL, NULL, 0, 0};
    *b = (conduit){ends[1], -1, back, there, memory ? &there->bell : NULL, NULL, 0, 0};
}

static void check_streams(void) {
    segment y = made_segment();
    const segment *where[] = {&y, NULL, NULL, NULL};
    oplog log;
    int file = memfd_create("log", 0);
    REQUIRE(file >= 0 && dlp_log_init(&log) == 0);
    dlp_log_file(&log, file, 0);
    pthread_t threads[8];
    worker workers[8];
    conduit ways[8];
    for (int i = 0; i < 8; i += 2) {
        connect_ends(&ways[i], &ways[i + 1], i >= 4);
        workers[i] = (worker){where, i, &ways[i], i % 4 ? &log : NULL};
        workers[i + 1] = (worker){where, i, &ways[i + 1], NULL};
        REQUIRE(pthread_create(&threads[i], NULL, serve, &workers[i]) == 0);
        REQUIRE(pthread_create(&threads[i + 1], NULL, ask, &workers[i + 1]) == 0);
    }
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 8; i++) close(ways[i].fd), free(ways[i].in);
    REQUIRE(dlp_log_position(&log) == (uint64_t)lseek(file, 0, SEEK_END));
    close(file);
    free_segment(&y);
}

#include "native_vision.h"

/* ---- mistakes on purpose: a sanitizer that misses them is not there ---- */

static float shared;

static void *race(void *argument) {
    for (int i = 0; i < 1000; i++) shared += 1;
    return argument;
}

static void plant(const char *what) {
    if (!strcmp(what, "overflow")) {
        operation o = {.code = OP_AXPY, .k = {1}};
        float *y = vector(4), *x = vector(5);
        dlp_apply(&o, y, NULL, NULL, x, NULL, 0, 5);
        free(y), free(x);
    }
    if (!strcmp(what, "race")) {
        pthread_t other;
        pthread_create(&other, NULL, race, NULL);
        race(NULL);
        pthread_join(other, NULL);
    }
}

int main(int count, char **words) {
    if (count > 1) return plant(words[1]), 0;
    check_operations(25);
    check_hostile(3000);
    check_sums(60);
    check_vision(60);
    check_threads();
    check_streams();
    puts("operations, payloads, sums, vision, threads, streams: as they should be");
    return 0;
}
