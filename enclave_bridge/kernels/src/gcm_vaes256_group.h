/*
 * One group of a page, in assembly: rounds 2 to 14 of eight vectors' AES-256 with the hash of eight vectors of
 * ciphertext between them.
 *
 * Why not in C: on Zen 3 VPCLMULQDQ is microcoded, and how it stands among other instructions decides how many of them
 * the core takes a cycle; an operand in memory, or four in a row, cost a fifth. gcc folds loads into it, gathers it
 * where it likes, and spills. The order below was found by measuring (bench/README.md); any in which each value
 * is made before it is used is right.
 *
 * Registers: ymm0-7 AES states; 8-10, by the compiler's choice, the sums lo, mid and hi; 11-14 temporaries T(0)-T(3);
 * 15 the round key.
 */
#define T0 "%%ymm11"
#define T1 "%%ymm12"
#define T2 "%%ymm13"
#define T3 "%%ymm14"
#define ROUND_KEY "%%ymm15"
#define STATE(i) "%%ymm" #i

/* AES. START: the state after the first round. MASK, LAST: the last round, its key XORed to what is en/decrypted. */
#define NONCE "vmovdqa (%[w]), " ROUND_KEY "\n\t"
#define START(i) "vpxor 32*" #i "(%[counters]), " ROUND_KEY ", " STATE(i) "\n\t"
#define KEY(round) "vbroadcasti128 16*" #round "(%[keys]), " ROUND_KEY "\n\t"
#define ENC(i) "vaesenc " ROUND_KEY ", " STATE(i) ", " STATE(i) "\n\t"
#define LAST(t, i) "vaesenclast " T##t ", " STATE(i) ", " STATE(i) "\n\t"
#define STORE(i) "vmovdqu " STATE(i) ", 32*" #i "(%[out])\n\t"

/* GHASH. TURN: byte-reverses blocks. Two vectors share the product of their XORed halves: TOPS and BOTTOMS gather them. */
#define TURN(t) "vpshufb 32(%[w]), " T##t ", " T##t "\n\t"
#define CARRY(t) "vpxor 64(%[w]), " T##t ", " T##t "\n\t"
#define POWER(i, t) "vmovdqa 32*" #i "(%[powers]), " T##t "\n\t"
#define HALVES(i, t) "vmovdqa 32*" #i "(%[halves]), " T##t "\n\t"
#define TOPS(a, b, t) "vpunpckhqdq " T##b ", " T##a ", " T##t "\n\t"
#define BOTTOMS(a, b, t) "vpunpcklqdq " T##b ", " T##a ", " T##t "\n\t"
#define MUL_LO(a, b, t) "vpclmulqdq $0x00, " T##a ", " T##b ", " T##t "\n\t"
#define MUL_HI(a, b, t) "vpclmulqdq $0x11, " T##a ", " T##b ", " T##t "\n\t"
#define ADD(t, sum) "vpxor " T##t ", %[" #sum "], %[" #sum "]\n\t"
#define XOR(a, t) "vpxor " T##a ", " T##t ", " T##t "\n\t"

#define GROUP_ORDER \
    NONCE START(0) START(2) START(3) START(4) START(1) START(5) START(6) START(7) \
    KEY(2) ENC(1) LOAD(2, 0) ENC(2) TURN(0) ENC(3) ENC(4) POWER(2, 2) ENC(5) MUL_LO(0, 2, 3) MUL_HI(0, 2, 2) \
    ENC(6) ADD(3, lo) ENC(7) ENC(0) \
    KEY(3) ENC(7) ADD(2, hi) POWER(3, 2) ENC(0) LOAD(3, 1) ENC(1) TURN(1) ENC(3) ENC(5) ENC(4) MUL_LO(1, 2, 3) \
    ENC(6) ADD(3, lo) BOTTOMS(0, 1, 3) MUL_HI(1, 2, 2) ADD(2, hi) ENC(2) \
    KEY(4) ENC(6) TOPS(0, 1, 2) ENC(1) ENC(0) ENC(2) HALVES(1, 1) ENC(3) ENC(4) ENC(5) XOR(2, 3) \
    MUL_LO(3, 1, 0) MUL_HI(3, 1, 3) ADD(0, mid) ENC(7) ADD(3, mid) \
    KEY(5) ENC(0) LOAD(4, 0) ENC(1) ENC(2) TURN(0) ENC(3) POWER(4, 2) ENC(4) ENC(5) MUL_LO(0, 2, 3) \
    MUL_HI(0, 2, 2) ENC(6) ADD(3, lo) ENC(7) ADD(2, hi) \
    KEY(6) LOAD(5, 1) ENC(1) ENC(0) ENC(2) ENC(3) ENC(4) POWER(5, 2) TURN(1) MUL_LO(1, 2, 3) MUL_HI(1, 2, 2) \
    ADD(2, hi) ENC(5) ENC(6) ADD(3, lo) TOPS(0, 1, 2) ENC(7) \
    KEY(7) ENC(2) BOTTOMS(0, 1, 3) ENC(0) HALVES(2, 1) ENC(1) ENC(3) XOR(2, 3) ENC(4) MUL_LO(3, 1, 0) \
    MUL_HI(3, 1, 3) ENC(5) ENC(6) ADD(0, mid) LOAD(6, 0) ENC(7) \
    KEY(8) ENC(2) ENC(1) ENC(0) TURN(0) ENC(3) POWER(6, 2) ADD(3, mid) ENC(4) MUL_LO(0, 2, 3) MUL_HI(0, 2, 2) \
    ENC(5) ADD(3, lo) ENC(6) ENC(7) \
    KEY(9) ADD(2, hi) ENC(0) LOAD(7, 1) ENC(1) ENC(2) ENC(3) POWER(7, 2) ENC(4) TURN(1) MUL_LO(1, 2, 3) \
    MUL_HI(1, 2, 2) ENC(5) ADD(3, lo) ENC(7) ENC(6) \
    KEY(10) ADD(2, hi) TOPS(0, 1, 2) ENC(0) ENC(2) BOTTOMS(0, 1, 3) ENC(1) HALVES(3, 1) ENC(3) XOR(2, 3) ENC(4) \
    MUL_LO(3, 1, 0) ENC(5) ADD(0, mid) LOAD(0, 0) ENC(6) ENC(7) \
    KEY(11) MUL_HI(3, 1, 3) ADD(3, mid) POWER(0, 2) ENC(3) TURN(0) ENC(1) ENC(2) CARRY(0) ENC(4) ENC(5) \
    MUL_LO(0, 2, 3) MUL_HI(0, 2, 2) ENC(6) ADD(3, lo) ADD(2, hi) ENC(0) ENC(7) \
    KEY(12) ENC(0) LOAD(1, 1) ENC(1) ENC(2) ENC(3) TURN(1) ENC(4) POWER(1, 2) ENC(5) MUL_LO(1, 2, 3) \
    MUL_HI(1, 2, 2) ENC(6) ADD(3, lo) ENC(7) \
    KEY(13) ENC(0) ADD(2, hi) TOPS(0, 1, 2) ENC(1) BOTTOMS(0, 1, 3) ENC(2) HALVES(0, 1) ENC(3) ENC(4) ENC(5) \
    XOR(2, 3) MUL_LO(3, 1, 0) MUL_HI(3, 1, 3) ENC(6) ENC(7) ADD(0, mid) ADD(3, mid) \
    KEY(14) MASK(0, 0) LAST(0, 0) STORE(0) MASK(1, 1) LAST(1, 1) STORE(1) MASK(2, 2) LAST(2, 2) STORE(2) \
    MASK(3, 3) LAST(3, 3) MASK(4, 0) STORE(3) LAST(0, 4) STORE(4) MASK(5, 1) LAST(1, 5) STORE(5) MASK(6, 2) \
    LAST(2, 6) STORE(6) MASK(7, 3) LAST(3, 7) STORE(7)

#define RUN(ORDER) \
  __asm__ volatile(".p2align 6\n\t" ORDER \
                   : [lo] "+x"(h->lo), [mid] "+x"(h->mid), [hi] "+x"(h->hi) \
                   : [in] "r"(in), [out] "r"(out), [keys] "r"(key->round_keys), [counters] "r"(counters), \
                     [powers] "r"(powers), [halves] "r"(halves), [w] "r"(w) \
                   : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm11", "xmm12", \
                     "xmm13", "xmm14", "xmm15")

/* Encrypts a group; hashes the one in w->ciphertext, then puts its own there. */
#define LOAD(i, t) "vmovdqa 96+32*" #i "(%[w]), " T##t "\n\t"
#define MASK(i, t) "vpxor 32*" #i "(%[in]), " ROUND_KEY ", " T##t "\n\t"
#define KEEP(i) "vmovdqa " STATE(i) ", 96+32*" #i "(%[w])\n\t"
INLINE void seal_group_256(const gcm_key *key, const uint8_t *in, uint8_t *out, const uint8_t *counters,
                           const uint8_t *powers, const uint8_t *halves, workspace *w, hasher *h) {
  RUN(GROUP_ORDER KEEP(0) KEEP(1) KEEP(2) KEEP(3) KEEP(4) KEEP(5) KEEP(6) KEEP(7));
}
#undef LOAD
#undef MASK
#undef KEEP

/* Hashes and decrypts a group; each of its bytes is loaded once, and kept in w->ciphertext in between. */
#define LOAD(i, t) "vmovdqu 32*" #i "(%[in]), " T##t "\n\tvmovdqa " T##t ", 96+32*" #i "(%[w])\n\t"
#define MASK(i, t) "vpxor 96+32*" #i "(%[w]), " ROUND_KEY ", " T##t "\n\t"
INLINE void open_group_256(const gcm_key *key, const uint8_t *in, uint8_t *out, const uint8_t *counters,
                           const uint8_t *powers, const uint8_t *halves, workspace *w, hasher *h) {
  RUN(GROUP_ORDER);
}
#undef LOAD
#undef MASK
