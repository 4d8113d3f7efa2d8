/* Bytes between a conduit and memory; the box applies operations while they arrive. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <string.h>

/* ---- the worker's side: both ways at once, never blocked for longer than asked ---- */

enum {
    CHUNK_BYTES = CHUNK * sizeof(float),
    WINDOW = 1 << 20, /* so far ahead of the answers: what comes back is still in the cache */
    BURST = 1 << 26,  /* then let Python see signals */
};

static size_t to_border(size_t at, size_t end) {
    size_t border = (at / CHUNK_BYTES + 1) * CHUNK_BYTES;
    return (border < end ? border : end) - at;
}

/* MERGE sends what x (in) gained over its base z (out): computed a chunk at a time. */
static void prepare(int kind, char *out, const char *in, size_t out_n, size_t *done) {
    if (kind != OP_MERGE || done[0] < done[2]) return;
    size_t at = done[2], bytes = to_border(at, out_n);
    static const operation gain = {.code = OP_AXPBY, .k = {1, -1}};
    dlp_apply(&gain, (float *)(out + at), NULL, NULL, (void *)(in + at), NULL, 0, bytes / sizeof(float));
    done[2] += bytes;
}

/* ELASTIC takes each chunk of differences off x; MERGE's base becomes the new value. */
static void complete(int kind, char *out, char *in, size_t in_n, size_t at, size_t *done) {
    if (kind == OP_NONE || (done[1] % CHUNK_BYTES && done[1] < in_n)) return;
    size_t start = at / CHUNK_BYTES * CHUNK_BYTES, bytes = done[1] - start;
    if (kind == OP_MERGE) memcpy(out + start, in + start, bytes);
    static const operation take = {.code = OP_AXPY, .k = {-1}};
    if (kind == OP_ELASTIC)
        dlp_apply(&take, (float *)(out + start), NULL, NULL, in, NULL, 0, bytes / sizeof(float));
}

static ssize_t pull(conduit *c, int kind, char *out, char *in, size_t in_n, size_t *done) {
    size_t at = done[1], left = kind == OP_NONE ? in_n - at : to_border(at, in_n);
    if (!left) return 0;
    char *to = in + (kind == OP_ELASTIC ? at % CHUNK_BYTES : at);
    ssize_t n = dlp_take(c, to, left);
    if (n <= 0) return n;
    done[1] += (size_t)n;
    complete(kind, out, in, in_n, at, done);
    return n;
}

static ssize_t push(conduit *c, int kind, char *out, const char *in, size_t out_n, size_t *done) {
    if (done[0] >= out_n) return 0;
    prepare(kind, out, in, out_n, done);
    size_t end = kind == OP_MERGE ? done[2] : out_n;
    ssize_t n = dlp_put(c, out + done[0], end - done[0]);
    if (n > 0) done[0] += (size_t)n;
    return n;
}

/* Move out_n bytes out and in_n bytes in at the same time. done[] says how far: sent, received,
   prepared. NONE: just so. ELASTIC: x goes out, differences come into a chunk of scratch.
   MERGE: z goes out as the gain of x, new values come into x and z.
   Returns 1 when all moved, 0 after ms without progress or a burst (call again), or an error. */
int dlp_exchange(conduit *c, int kind, char *out, size_t out_n, char *in, size_t in_n, int ms,
                 size_t *done) {
    size_t limit = done[0] + done[1] + BURST;
    while (done[0] < out_n || done[1] < in_n) {
        ssize_t got = pull(c, kind, out, in, in_n, done);
        if (got < 0) return (int)got;
        size_t ahead = (done[1] + WINDOW) / sizeof(float) * sizeof(float);
        size_t allowed = in_n && ahead < out_n ? ahead : out_n;
        ssize_t put = push(c, kind, out, in, allowed, done);
        if (put < 0) return (int)put;
        if (done[0] + done[1] > limit) return 0;
        if (got || put) continue;
        int ready = dlp_ready(c, done[0] < allowed, done[1] < in_n, ms);
        if (ready <= 0) return ready == -EINTR ? 0 : ready;
    }
    return 1;
}

/* ---- the box's side: a thread of its own per connection may block ---- */

enum { RING = 8 /* chunks of answers kept: more than a worker can be behind (WINDOW) */ };

/* One update under way. `done` outlives the connection, so that a retry goes on from there. */
typedef struct {
    operation o;
    uint64_t start, n, done; /* elements */
    char *payload;           /* one chunk; for TOPK all of it */
    float *answers;          /* RING chunks; or NULL */
    oplog *log;              /* or NULL */
    const void *head;        /* of its records */
    uint64_t head_bytes, at; /* at: where a sparse payload's span begins, seen from its positions */
    uint32_t epoch;
} update;

size_t dlp_ring_floats(void) { return (size_t)RING * CHUNK; }

static float *answer_at(const update *u, uint64_t i) {
    return u->answers + i / CHUNK % RING * CHUNK + i % CHUNK;
}

/* Log a piece of one stripe before it is applied, both under the stripe's lock: the log has the
   order of the changes. */
static int logged(update *u, const segment *const *where, size_t n, size_t i, char *x, float *z) {
    size_t start = u->start + u->done, stripe = start / STRIPE;
    int sparse = u->o.format == FORMAT_TOPK;
    size_t at = sparse ? u->at + u->done : i;
    record r = {.head = (uint32_t)u->head_bytes, .at = u->done, .n = n};
    r.body = dlp_payload_bytes(u->o.format, sparse ? u->n : n, u->o.entries);
    dlp_log_share(u->log);
    int error = dlp_lock(where[0]->h, stripe), held = error >= 0;
    if (error == -EDEADLK) error = 0;
    if (error >= 0)
        error = dlp_append(u->log, &r, u->head, x + (sparse ? 0 : dlp_payload_bytes(u->o.format, i, 0)));
    if (!error) error = dlp_locked(&u->o, where, start, n, x, z, at, 0, u->epoch);
    if (held) dlp_unlock(where[0]->h, stripe);
    dlp_log_free(u->log);
    return error;
}

/* Apply m elements from `done` on, a stripe at a time; `done` never lags behind what happened. */
static int apply_chunk(update *u, const segment *const *where, size_t m, char *x, float *z) {
    int error = 0;
    for (size_t i = 0, n; i < m && !error; i += n) {
        size_t start = u->start + u->done, border = (start / STRIPE + 1) * STRIPE - start;
        size_t at = u->o.format == FORMAT_TOPK ? u->at + u->done : i;
        n = border < m - i ? border : m - i;
        error = u->log ? logged(u, where, n, i, x, z)
                       : dlp_locked(&u->o, where, start, n, x, z, at, 0, u->epoch);
        if (!error) u->done += n;
    }
    return error;
}

/* A sparse payload is received whole and checked before it may touch anything. */
static int receive_sparse(conduit *c, update *u, const segment *const *where) {
    size_t bytes = dlp_payload_bytes(u->o.format, u->n, u->o.entries);
    int error = dlp_receive(c, u->payload, bytes);
    if (!error) error = dlp_check_payload(u->o.format, u->payload, u->at + u->n, u->o.entries);
    return error ? error : apply_chunk(u, where, u->n - u->done, u->payload, NULL);
}

static int takes_x(int code) {
    return code == OP_FETCH || code == OP_DELAY || code == OP_ADAPT;
}

/* Receive x from element `done` on, in chunks that stay in the cache, and apply each at once.
   DIFFERENCE answers with the differences; FETCH, DELAY with the new values. */
int dlp_receive_apply(conduit *c, update *u, const segment *const *where) {
    if (u->o.format == FORMAT_TOPK) return u->done < u->n ? receive_sparse(c, u, where) : 0;
    int keeps_z = u->o.code == OP_DIFFERENCE, error = 0;
    while (u->done < u->n && !error) {
        size_t m = CHUNK - u->done % CHUNK;
        if (m > u->n - u->done) m = u->n - u->done;
        float *answer = u->answers ? answer_at(u, u->done) : NULL;
        char *x = takes_x(u->o.code) ? (char *)answer : u->payload;
        error = dlp_receive(c, x, dlp_payload_bytes(u->o.format, m, 0));
        if (!error) error = apply_chunk(u, where, m, x, keeps_z ? answer : NULL);
        if (!error && answer) error = dlp_send(c, (char *)answer, m * sizeof *answer, 0);
    }
    return error;
}

/* Send again the answers of elements [from, done), which the worker has not received. */
int dlp_answer_again(conduit *c, const update *u, uint64_t from) {
    if (from % CHUNK || u->done > from + (uint64_t)RING * CHUNK) return -EINVAL;
    int error = 0;
    for (uint64_t i = from, m; i < u->done && !error; i += m) {
        m = u->done - i < CHUNK ? u->done - i : CHUNK;
        error = dlp_send(c, (char *)answer_at(u, i), m * sizeof(float), 0);
    }
    return error;
}

/* Apply one record of a log again; the answers are made again, too. */
int dlp_replay(update *u, const segment *const *where, uint64_t at, size_t n, void *x) {
    float *answer = u->answers ? answer_at(u, at) : NULL;
    int sparse = u->o.format == FORMAT_TOPK, error = 0;
    if (takes_x(u->o.code)) x = memcpy(answer, x, n * sizeof *answer);
    if (sparse) error = dlp_check_payload(u->o.format, x, u->at + u->n, u->o.entries);
    if (!error)
        error = dlp_locked(&u->o, where, u->start + at, n, x,
                           u->o.code == OP_DIFFERENCE ? answer : NULL, sparse ? u->at + at : 0, 0,
                           u->epoch);
    if (!error) u->done = at + n;
    return error;
}
