/* The log of a box: what was done, in the order it was done, in a file and at a mirror box. */
#define _GNU_SOURCE
#include "dlp.h"
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static const uint32_t RECORD = 0x64726c64; /* "dlrd" */
enum { ALONE = 1 /* the mirror is lost */, BROKEN = 2 /* the file is */, MOVED = 3 };

size_t dlp_log_bytes(void) { return sizeof(oplog); }
size_t dlp_record_bytes(void) { return sizeof(record); }

int dlp_log_init(oplog *l) {
    memset(l, 0, sizeof *l);
    l->file = l->mirror = -1;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr); /* whoever wants it alone does not wait for new sharers */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    int error = pthread_rwlock_init(&l->order, &attr);
    pthread_rwlockattr_destroy(&attr);
    return -error;
}

void dlp_log_share(oplog *l) { pthread_rwlock_rdlock(&l->order); }
void dlp_log_alone(oplog *l) { pthread_rwlock_wrlock(&l->order); }
void dlp_log_free(oplog *l) { pthread_rwlock_unlock(&l->order); }
uint64_t dlp_log_position(const oplog *l) { return l->position; }
int dlp_log_degraded(const oplog *l) { return (int)l->degraded; }

/* With the log alone, or before anybody uses it: continue in other places. */
void dlp_log_file(oplog *l, int file, uint64_t position) {
    pthread_mutex_lock(&l->mutex);
    l->file = file;
    l->position = position;
    pthread_mutex_unlock(&l->mutex);
}

void dlp_log_mirror(oplog *l, int mirror) {
    pthread_mutex_lock(&l->mutex);
    l->mirror = mirror;
    pthread_mutex_unlock(&l->mutex);
}

/* A sum over all bytes that a torn or damaged record does not pass (not against attackers). */
static uint64_t sum_of(const unsigned char *p, size_t n, uint64_t seed) {
    const uint64_t prime = 0x9e3779b97f4a7c15u;
    uint64_t lane[4] = {seed, seed + 1, seed + 2, seed + 3}, word;
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) {
            memcpy(&word, p + i + 8 * k, sizeof word);
            lane[k] = ((lane[k] ^ word) * prime);
            lane[k] ^= lane[k] >> 29;
        }
    for (; i < n; i++) lane[0] = (lane[0] ^ p[i]) * prime;
    for (int k = 1; k < 4; k++) lane[0] = (lane[0] ^ lane[k]) * prime ^ (lane[0] >> 31);
    return lane[0];
}

uint64_t dlp_record_sum(const record *r, const void *head, const void *body) {
    uint64_t sum = sum_of(head, r->head, r->at * 31 + r->n);
    return sum_of(body, r->body, sum);
}

int dlp_record_check(const record *r) {
    return r->magic == RECORD && r->head <= 1 << 20 && r->body <= (uint64_t)1 << 42;
}

static int write_all(int fd, struct iovec *v, int parts) {
    while (parts) {
        ssize_t n = writev(fd, v, parts);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        while (parts && (size_t)n >= v->iov_len) n -= (ssize_t)v->iov_len, v++, parts--;
        if (parts) v->iov_base = (char *)v->iov_base + n, v->iov_len -= (size_t)n;
    }
    return 0;
}

static void parts_of(struct iovec *v, record *r, const void *head, const void *body) {
    v[0] = (struct iovec){r, sizeof *r};
    v[1] = (struct iovec){(void *)head, r->head};
    v[2] = (struct iovec){(void *)body, r->body};
}

/* The mirror answers every record with one byte: k(ept), or m(oved): workers have gone over to it,
   and nothing may change here any more. A mirror that does not answer is given up. */
static int to_mirror(oplog *l, record *r, const void *head, const void *body) {
    struct iovec v[3];
    char answer;
    conduit link = {.fd = l->mirror};
    parts_of(v, r, head, body);
    if (!write_all(l->mirror, v, 3) && !dlp_receive(&link, &answer, 1)) {
        if (answer == 'k') return 0;
        if (answer == 'm') l->degraded = MOVED;
    }
    l->mirror = -1;
    if (l->degraded != MOVED) l->degraded = ALONE;
    return l->degraded == MOVED ? -ESTALE : 0;
}

/* Append a record whose head, body, at and n are set. A record that does not fit is taken back,
   and the operation must not happen. */
int dlp_append(oplog *l, record *r, const void *head, const void *body) {
    r->magic = RECORD;
    r->sum = dlp_record_sum(r, head, body);
    pthread_mutex_lock(&l->mutex);
    int error = 0;
    if (l->file >= 0) {
        struct iovec v[3];
        parts_of(v, r, head, body);
        error = write_all(l->file, v, 3);
        if (!error) l->position += sizeof *r + r->head + r->body;
        else if (ftruncate(l->file, (off_t)l->position) || lseek(l->file, (off_t)l->position, 0) < 0)
            l->file = -1, l->degraded = BROKEN; /* cannot be trusted any more: refuse from now on */
    } else if (l->degraded == BROKEN) {
        error = -EIO;
    }
    if (l->degraded == MOVED) error = -ESTALE;
    if (!error && l->mirror >= 0) error = to_mirror(l, r, head, body);
    l->records++;
    pthread_mutex_unlock(&l->mutex);
    return error;
}
