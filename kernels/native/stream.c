/* Bytes between sockets and box memory; the box applies operations while they arrive. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { CLOSED = -1000000 /* end of stream, apart from every errno */ };

static int again(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

static ssize_t some(ssize_t n, int reading) {
    if (n > 0) return n;
    if (n == 0) return reading ? CLOSED : 0;
    return again(errno) ? 0 : -errno;
}

/* Move up to out_n bytes out and in_n bytes in at the same time; done[] counts both.
   Returns 1 when all moved, 0 after ms without an end (call again), or an error. */
int dlp_duplex(int fd, const char *out, size_t out_n, char *in, size_t in_n, int ms,
               size_t *done) {
    while (done[0] < out_n || done[1] < in_n) {
        struct pollfd p = {fd, (short)((done[0] < out_n ? POLLOUT : 0) |
                                       (done[1] < in_n ? POLLIN : 0)), 0};
        int ready = poll(&p, 1, ms);
        if (ready < 0 && errno == EINTR) return 0;
        if (ready < 0) return -errno;
        if (ready == 0) return 0;
        if (done[1] < in_n && p.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t n = some(recv(fd, in + done[1], in_n - done[1], MSG_DONTWAIT), 1);
            if (n < 0) return (int)n;
            done[1] += (size_t)n;
        }
        if (done[0] < out_n && p.revents & (POLLOUT | POLLHUP | POLLERR)) {
            ssize_t n = some(send(fd, out + done[0], out_n - done[0], MSG_DONTWAIT | MSG_NOSIGNAL), 0);
            if (n < 0) return (int)n;
            done[0] += (size_t)n;
        }
    }
    return 1;
}

/* ---- the box's side: a thread of its own per connection may block ---- */

static int receive(int fd, char *at, size_t n) {
    while (n) {
        ssize_t m = recv(fd, at, n, 0);
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
   DIFFERENCE answers with the differences, FETCH with the new values. */
int dlp_receive_apply(int fd, int op, segment_header *h, float *y, size_t start, size_t n,
                      float a, float b) {
    float *x = malloc(2 * CHUNK * sizeof *x), *z = x + CHUNK;
    if (!x) return -ENOMEM;
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
    free(x);
    return error;
}
