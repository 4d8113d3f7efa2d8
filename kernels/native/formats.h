/* How one element of a compressed payload becomes a float; inline so that loops can fuse it. */
#ifndef DLP_FORMATS_H
#define DLP_FORMATS_H

#include "dlp.h"

/* A payload begins at a multiple of four bytes. */
int dlp_pack(int format, const float *x, float *residual, void *out, size_t n, size_t entries);
void dlp_unpack(int format, const void *payload, float *out, size_t at, size_t n, size_t entries);
size_t dlp_first_entry(const uint32_t *positions, size_t entries, size_t at);

typedef union {
    float value;
    uint32_t bits;
} word;

/* Where a condition holds, a, elsewhere b. With "?:" the compiler keeps a branch around floating
   point that could trap, and no vector code comes of it below AVX-512. */
static inline uint32_t choose(int condition, uint32_t a, uint32_t b) {
    uint32_t mask = -(uint32_t)(condition != 0);
    return (a & mask) | (b & ~mask);
}

static inline float from_bf16(uint16_t half) { return (word){.bits = (uint32_t)half << 16}.value; }

/* No lane computes with an fp32 denormal, which would cost a hundred cycles. */
static inline float from_fp16(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13, exponent = bits & 0x0f800000;
    uint32_t normal = bits + (112u << 23) + choose(exponent == 0x0f800000, 112u << 23, 0);
    word small = {.bits = bits + (113u << 23)};
    small.value -= 0x1p-14f;
    uint32_t size = choose(exponent == 0, small.bits, normal);
    return (word){.bits = size | (uint32_t)(half & 0x8000) << 16}.value;
}

#endif
