/* Bytes between sockets and box memory; the box applies operations while they arrive. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

enum { CLOSED = -1000000 /* end of stream, apart from every errno */ };

static int again(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

static ssize_t some(ssize_t n, int reading) {
    if (n > 0) return n;
    if (n == 0) return reading ? CLOSED : 0;
    return again(errno) ? 0 : -errno;
}

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
    dlp_apply(OP_AXPBY, (float *)(out + at), (float *)(in + at), NULL, bytes / sizeof(float), 1, -1);
    done[2] += bytes;
}

/* ELASTIC takes each chunk of differences off x; MERGE's base becomes the new value. */
static void complete(int kind, char *out, char *in, size_t in_n, size_t at, size_t *done) {
    if (kind == OP_NONE || (done[1] % CHUNK_BYTES && done[1] < in_n)) return;
    size_t start = at / CHUNK_BYTES * CHUNK_BYTES, bytes = done[1] - start;
    if (kind == OP_MERGE) memcpy(out + start, in + start, bytes);
    if (kind == OP_ELASTIC)
        dlp_apply(OP_AXPY, (float *)(out + start), (float *)in, NULL, bytes / sizeof(float), -1, 0);
}

static ssize_t pull(int fd, int kind, char *out, char *in, size_t in_n, size_t *done) {
    size_t at = done[1], left = kind == OP_NONE ? in_n - at : to_border(at, in_n);
    if (!left) return 0;
    char *to = in + (kind == OP_ELASTIC ? at % CHUNK_BYTES : at);
    ssize_t n = some(recv(fd, to, left, MSG_DONTWAIT), 1);
    if (n <= 0) return n;
    done[1] += (size_t)n;
    complete(kind, out, in, in_n, at, done);
    return n;
}

static ssize_t push(int fd, int kind, char *out, const char *in, size_t out_n, size_t *done) {
    if (done[0] >= out_n) return 0;
    prepare(kind, out, in, out_n, done);
    size_t end = kind == OP_MERGE ? done[2] : out_n;
    ssize_t n = some(send(fd, out + done[0], end - done[0], MSG_DONTWAIT | MSG_NOSIGNAL), 0);
    if (n > 0) done[0] += (size_t)n;
    return n;
}

/* Move out_n bytes out and in_n bytes in at the same time. done[] says how far: sent, received,
   prepared. NONE: just so. ELASTIC: x goes out, differences come into a chunk of scratch.
   MERGE: z goes out as the gain of x, new values come into x and z.
   Returns 1 when all moved, 0 after ms without progress or a burst (call again), or an error. */
int dlp_exchange(int fd, int kind, char *out, size_t out_n, char *in, size_t in_n, int ms,
                 size_t *done) {
    size_t limit = done[0] + done[1] + BURST;
    while (done[0] < out_n || done[1] < in_n) {
        ssize_t got = pull(fd, kind, out, in, in_n, done);
        if (got < 0) return (int)got;
        size_t ahead = (done[1] + WINDOW) / sizeof(float) * sizeof(float);
        size_t allowed = in_n && ahead < out_n ? ahead : out_n;
        ssize_t put = push(fd, kind, out, in, allowed, done);
        if (put < 0) return (int)put;
        if (done[0] + done[1] > limit) return 0;
        if (got || put) continue;
        struct pollfd p = {fd, (short)((done[0] < allowed ? POLLOUT : 0) |
                                       (done[1] < in_n ? POLLIN : 0)), 0};
        int ready = poll(&p, 1, ms);
        if (ready <= 0) return ready < 0 && errno != EINTR ? -errno : 0;
    }
    return 1;
}

/* ---- the box's side: a thread of its own per connection may block ---- */

static int receive(int fd, char *at, size_t n) {
    while (n) {
        ssize_t m = recv(fd, at, n, MSG_WAITALL);
        if (m < 0 && errno == EINTR) continue;
        if (m <= 0) return m ? -errno : CLOSED;
        at += m;
        n -= (size_t)m;
    }
    return 0;
}

static int transmit(int fd, const char *at, size_t n) {
    while (n) {
        ssize_t m = send(fd, at, n, MSG_NOSIGNAL);
        if (m < 0 && errno == EINTR) continue;
        if (m < 0) return -errno;
        at += m;
        n -= (size_t)m;
    }
    return 0;
}

int dlp_receive(int fd, char *at, size_t n) { return receive(fd, at, n); }
int dlp_transmit(int fd, const char *at, size_t n) { return transmit(fd, at, n); }

/* Read and throw away the bytes of a refused request. */
int dlp_discard(int fd, size_t n) {
    char sink[PAGE];
    for (size_t m; n; n -= m) {
        m = n < sizeof sink ? n : sizeof sink;
        int error = receive(fd, sink, m);
        if (error) return error;
    }
    return 0;
}

/* Receive x in chunks that stay in the cache and apply each to y[start, start+n) at once.
   DIFFERENCE answers with the differences, FETCH with the new values. scratch: two chunks. */
int dlp_receive_apply(int fd, int op, segment_header *h, float *y, size_t start, size_t n,
                      float a, float b, float *scratch) {
    float *x = scratch, *z = scratch + CHUNK;
    int error = 0;
    for (size_t i = 0, m; i < n && !error; i += m) {
        m = CHUNK - (start + i) % CHUNK; /* never across a stripe */
        if (m > n - i) m = n - i;
        error = receive(fd, (char *)x, m * sizeof *x);
        if (!error) error = dlp_locked(op, h, y, start + i, m, x, z, a, b, 0);
        if (error) break;
        if (op == OP_DIFFERENCE) error = transmit(fd, (char *)z, m * sizeof *z);
        if (op == OP_FETCH) error = transmit(fd, (char *)x, m * sizeof *x);
    }
    return error;
}
