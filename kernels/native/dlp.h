/* The hot operations of the memory box: plain C, no Python and no torch headers. */
#ifndef DLP_H
#define DLP_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* One build serves old and new processors; the loader picks the widest version. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

enum { PAGE = 4096, STRIPE = 1 << 18 /* floats: 1 MiB */, CHUNK = 1 << 16 /* floats: 256 KiB */ };

/* y lives in the box, x (and z) with whoever asks. */
enum operation {
    OP_NONE = -1,
    OP_SCAL = 0,      /* y = a y */
    OP_AXPY = 1,      /* y = y + a x */
    OP_AXPBY = 2,     /* y = a x + b y */
    OP_ELASTIC = 3,   /* d = a (x - y); y = y + d; x = x - d */
    OP_DIFFERENCE = 4,/* z = a (x - y); y = y + z */
    OP_MERGE = 5,     /* y = y + (x - z), or x where y == z; x = z = y */
    OP_FETCH = 6,     /* y = y + a x; x = y */
};

/* In front of every segment's data: one robust lock a stripe. */
typedef union {
    pthread_mutex_t mutex;
    char line[64];
} stripe_lock;

typedef struct {
    uint64_t magic, floats, stripes, recovered;
    char line[32];
    stripe_lock locks[];
} segment_header;

/* A 64-bit number in shared memory that processes can wait for. */
typedef struct {
    int64_t value;
    uint32_t turn, waiters;
    char line[48];
} counter;

void dlp_apply(int op, float *y, float *x, float *z, size_t n, float a, float b);
int dlp_locked(int op, segment_header *h, float *y, size_t start, size_t n, float *x, float *z,
               float a, float b, size_t turn);
int dlp_lock(segment_header *h, size_t stripe);
void dlp_unlock(segment_header *h, size_t stripe);

#endif
