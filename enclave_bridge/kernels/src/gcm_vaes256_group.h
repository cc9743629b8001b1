/*
 * One group of a page, in assembly: rounds 3 to 14 of eight vectors' AES-256 with the hash of eight vectors of
 * ciphertext between them.
 *
 * Why not in C: on Zen 3 VPCLMULQDQ is microcoded, and how it stands among other instructions decides how many of them
 * the core takes a cycle; an operand in memory, or four in a row, cost a fifth. gcc folds loads into it, gathers it
 * where it likes, and spills. The orders below were found by measuring (bench/README.md); any in which each value
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

/* AES. START: the state after the second round. LAST: the last round; CRYPT: key stream to output. */
#define BASE "vmovdqa (%[w]), " ROUND_KEY "\n\t"
#define START(i) "vpxor 32*" #i "(%[counters],%[at]), " ROUND_KEY ", " STATE(i) "\n\t"
#define KEY(round) "vbroadcasti128 16*" #round "(%[keys]), " ROUND_KEY "\n\t"
#define ENC(i) "vaesenc " ROUND_KEY ", " STATE(i) ", " STATE(i) "\n\t"
#define LAST(i) "vaesenclast " ROUND_KEY ", " STATE(i) ", " STATE(i) "\n\t"
#define STORE(i) "vmovdqu " STATE(i) ", 32*" #i "(%[out],%[at])\n\t"

/* GHASH. TURN: byte-reverses blocks. Two vectors share the product of their XORed halves: OUTER and INNER gather them. */
#define TURN(t) "vpshufb 32(%[w]), " T##t ", " T##t "\n\t"
#define CARRY(t) "vpxor 64(%[w]), " T##t ", " T##t "\n\t"
#define POWER(i, t) "vmovdqa 32*" #i "(%[powers],%[at]), " T##t "\n\t"
#define HALVES(i, t) "vmovdqa 32*" #i "(%[halves]), " T##t "\n\t"
#define OUTER(a, b, t) "vpblendd $0xcc, " T##b ", " T##a ", " T##t "\n\t"
#define INNER(a, b, t) "vpalignr $8, " T##a ", " T##b ", " T##t "\n\t"
#define MUL_LO(a, b, t) "vpclmulqdq $0x00, " T##a ", " T##b ", " T##t "\n\t"
#define MUL_HI(a, b, t) "vpclmulqdq $0x11, " T##a ", " T##b ", " T##t "\n\t"
#define ADD(t, sum) "vpxor " T##t ", %[" #sum "], %[" #sum "]\n\t"
#define XOR(a, t) "vpxor " T##a ", " T##t ", " T##t "\n\t"

/* Where it stands the next instruction falls into another of the groups of six that the core takes at once. */
#define PAD "nop\n\t"

#define RUN(ORDER) \
  __asm__ volatile(ORDER \
                   : [lo] "+x"(h->lo), [mid] "+x"(h->mid), [hi] "+x"(h->hi) \
                   : [in] "r"(in), [out] "r"(out), [keys] "r"(key->round_keys), [counters] "r"(counters), \
                     [powers] "r"(powers), [halves] "r"(halves), [at] "r"(at), [w] "r"(w) \
                   : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm11", "xmm12", \
                     "xmm13", "xmm14", "xmm15")

/* Encrypts a group; hashes the one in w->ciphertext, then puts its own there. `at`, here and when opening, is the
 * offset of the group from in, out, counters and powers. */
#define LOAD(i, t) "vmovdqa 96+32*" #i "(%[w]), " T##t "\n\t"
#define CRYPT(i) "vpxor 32*" #i "(%[in],%[at]), " STATE(i) ", " STATE(i) "\n\t"
#define KEEP(i) "vmovdqa " STATE(i) ", 96+32*" #i "(%[w])\n\t"
#define SEAL_ORDER \
    BASE START(1) START(0) START(5) START(2) START(7) START(3) START(6) START(4) \
    KEY(3) LOAD(2, 0) ENC(0) POWER(2, 2) TURN(0) ENC(2) ENC(5) ENC(1) LOAD(3, 1) TURN(1) MUL_LO(0, 2, 3) \
    MUL_HI(0, 2, 2) ENC(4) ENC(3) ENC(6) ENC(7) \
    KEY(4) ENC(2) ENC(0) ENC(1) ENC(3) ADD(2, hi) PAD ADD(3, lo) ENC(5) POWER(3, 2) ENC(4) MUL_LO(1, 2, 3) \
    ADD(3, lo) INNER(0, 1, 3) ENC(6) ENC(7) MUL_HI(1, 2, 2) ADD(2, hi) \
    KEY(5) ENC(0) OUTER(0, 1, 2) XOR(2, 3) HALVES(1, 1) ENC(1) MUL_LO(3, 1, 0) ENC(3) ENC(4) ENC(5) ADD(0, mid) \
    ENC(6) ENC(7) ENC(2) MUL_HI(3, 1, 3) ADD(3, mid) \
    KEY(6) PAD ENC(7) ENC(1) LOAD(5, 1) LOAD(4, 0) TURN(0) ENC(2) POWER(4, 2) MUL_LO(0, 2, 3) ENC(0) \
    MUL_HI(0, 2, 2) ENC(3) ENC(4) ENC(5) TURN(1) ENC(6) \
    KEY(7) ENC(4) ENC(1) ENC(2) ADD(2, hi) PAD ENC(7) ADD(3, lo) ENC(3) ENC(5) POWER(5, 2) MUL_LO(1, 2, 3) \
    ADD(3, lo) INNER(0, 1, 3) ENC(0) ENC(6) MUL_HI(1, 2, 2) \
    KEY(8) ADD(2, hi) ENC(0) OUTER(0, 1, 2) XOR(2, 3) PAD HALVES(2, 1) MUL_LO(3, 1, 0) ENC(1) ENC(2) ENC(3) ENC(4) \
    ENC(6) ENC(5) ADD(0, mid) MUL_HI(3, 1, 3) ADD(3, mid) ENC(7) \
    KEY(9) LOAD(7, 1) ENC(0) ENC(1) TURN(1) POWER(6, 2) LOAD(6, 0) TURN(0) ENC(7) ENC(2) MUL_LO(0, 2, 3) ENC(4) \
    ENC(5) ENC(6) ENC(3) \
    KEY(10) MUL_HI(0, 2, 2) ENC(0) ENC(1) ENC(2) ADD(2, hi) ENC(3) ENC(4) ADD(3, lo) ENC(5) POWER(7, 2) \
    MUL_LO(1, 2, 3) ADD(3, lo) INNER(0, 1, 3) ENC(6) ENC(7) MUL_HI(1, 2, 2) ADD(2, hi) \
    KEY(11) ENC(0) OUTER(0, 1, 2) XOR(2, 3) HALVES(3, 1) MUL_LO(3, 1, 0) ENC(1) ENC(4) ENC(2) ENC(3) ENC(5) ENC(6) \
    ADD(0, mid) MUL_HI(3, 1, 3) ADD(3, mid) ENC(7) LOAD(0, 0) \
    KEY(12) ENC(0) ENC(1) LOAD(1, 1) POWER(0, 2) TURN(1) TURN(0) ENC(2) MUL_LO(0, 2, 3) ENC(3) ENC(6) ENC(5) ENC(4) \
    ENC(7) \
    KEY(13) ENC(6) ENC(1) ENC(2) PAD ENC(0) MUL_HI(0, 2, 2) ADD(2, hi) ENC(3) ENC(4) ADD(3, lo) ENC(5) POWER(1, 2) \
    MUL_LO(1, 2, 3) ADD(3, lo) INNER(0, 1, 3) ENC(7) MUL_HI(1, 2, 2) ADD(2, hi) \
    KEY(14) LAST(0) OUTER(0, 1, 2) XOR(2, 3) HALVES(0, 1) MUL_LO(3, 1, 0) LAST(3) LAST(4) LAST(5) LAST(2) \
    ADD(0, mid) LAST(6) MUL_HI(3, 1, 3) ADD(3, mid) LAST(7) CRYPT(0) STORE(0) KEEP(0) LAST(1) CRYPT(1) KEEP(1) \
    STORE(1) CRYPT(2) STORE(2) KEEP(2) CRYPT(3) KEEP(3) CRYPT(4) KEEP(4) STORE(4) CRYPT(5) STORE(5) KEEP(5) \
    CRYPT(6) KEEP(6) STORE(3) STORE(6) CRYPT(7) KEEP(7) STORE(7)

INLINE void seal_group_256(const gcm_key *key, const uint8_t *in, uint8_t *out, const uint8_t *counters,
                           const uint8_t *powers, const uint8_t *halves, size_t at, workspace *w, hasher *h) {
  RUN(SEAL_ORDER);
}
#undef LOAD
#undef CRYPT
#undef KEEP

/* Hashes and decrypts a group; each of its bytes is loaded once, and kept in w->ciphertext in between. */
#define LOAD(i, t) "vmovdqu 32*" #i "(%[in],%[at]), " T##t "\n\t"
#define COPY(t, i) "vmovdqa " T##t ", 96+32*" #i "(%[w])\n\t"
#define CRYPT(i) "vpxor 96+32*" #i "(%[w]), " STATE(i) ", " STATE(i) "\n\t"
#define OPEN_ORDER(FIRST) \
    BASE PAD PAD START(0) START(1) START(5) START(2) START(3) START(6) START(4) START(7) \
    KEY(3) LOAD(2, 0) COPY(0, 2) ENC(4) PAD LOAD(3, 1) COPY(1, 3) ENC(0) TURN(1) ENC(2) PAD ENC(1) TURN(0) \
    POWER(2, 2) MUL_LO(0, 2, 3) MUL_HI(0, 2, 2) ENC(3) ENC(6) ENC(7) ENC(5) \
    KEY(4) ADD(2, hi) ENC(0) ENC(1) ENC(2) ENC(4) POWER(3, 2) ADD(3, lo) MUL_LO(1, 2, 3) ADD(3, lo) ENC(5) ENC(6) \
    ENC(3) ENC(7) MUL_HI(1, 2, 2) \
    KEY(5) ENC(2) ENC(0) ADD(2, hi) OUTER(0, 1, 2) INNER(0, 1, 3) XOR(2, 3) ENC(4) ENC(1) ENC(3) HALVES(1, 1) \
    MUL_LO(3, 1, 0) ADD(0, mid) ENC(5) ENC(6) MUL_HI(3, 1, 3) ADD(3, mid) ENC(7) LOAD(4, 0) COPY(0, 4) \
    KEY(6) ENC(1) LOAD(5, 1) ENC(0) ENC(5) ENC(3) COPY(1, 5) TURN(1) ENC(4) TURN(0) ENC(2) POWER(4, 2) \
    MUL_LO(0, 2, 3) MUL_HI(0, 2, 2) ENC(7) ENC(6) \
    KEY(7) ENC(3) ENC(0) ENC(1) ENC(2) ENC(6) PAD ENC(4) ENC(5) ADD(2, hi) ADD(3, lo) POWER(5, 2) MUL_LO(1, 2, 3) \
    ADD(3, lo) INNER(0, 1, 3) ENC(7) MUL_HI(1, 2, 2) ADD(2, hi) \
    KEY(8) ENC(0) OUTER(0, 1, 2) HALVES(2, 1) XOR(2, 3) ENC(1) MUL_LO(3, 1, 0) ENC(2) PAD ENC(3) ENC(6) ENC(5) \
    ADD(0, mid) MUL_HI(3, 1, 3) ADD(3, mid) ENC(7) ENC(4) \
    KEY(9) ENC(2) LOAD(7, 1) COPY(1, 7) ENC(0) TURN(1) POWER(6, 2) ENC(7) LOAD(6, 0) COPY(0, 6) TURN(0) ENC(4) \
    MUL_LO(0, 2, 3) ENC(5) ENC(6) ENC(1) ENC(3) \
    KEY(10) PAD ENC(2) MUL_HI(0, 2, 2) ADD(2, hi) ENC(0) ENC(1) ENC(3) ADD(3, lo) ENC(5) POWER(7, 2) \
    MUL_LO(1, 2, 3) ADD(3, lo) INNER(0, 1, 3) PAD ENC(4) ENC(6) ENC(7) MUL_HI(1, 2, 2) ADD(2, hi) \
    KEY(11) ENC(0) OUTER(0, 1, 2) XOR(2, 3) HALVES(3, 1) ENC(5) MUL_LO(3, 1, 0) ENC(1) ENC(2) ENC(3) ENC(4) ENC(6) \
    PAD ADD(0, mid) MUL_HI(3, 1, 3) ADD(3, mid) ENC(7) LOAD(0, 0) COPY(0, 0) \
    KEY(12) ENC(0) ENC(1) LOAD(1, 1) COPY(1, 1) TURN(1) POWER(0, 2) ENC(7) ENC(2) TURN(0) FIRST MUL_LO(0, 2, 3) \
    ENC(3) ENC(5) ENC(4) ENC(6) \
    KEY(13) MUL_HI(0, 2, 2) ENC(1) ENC(2) ENC(0) ADD(2, hi) ADD(3, lo) ENC(5) POWER(1, 2) PAD ENC(6) \
    MUL_LO(1, 2, 3) ADD(3, lo) PAD ENC(3) ENC(4) ENC(7) \
    KEY(14) MUL_HI(1, 2, 2) ADD(2, hi) LAST(0) OUTER(0, 1, 2) INNER(0, 1, 3) HALVES(0, 1) XOR(2, 3) MUL_LO(3, 1, 0) \
    LAST(3) LAST(4) LAST(5) LAST(2) ADD(0, mid) LAST(6) MUL_HI(3, 1, 3) ADD(3, mid) LAST(7) CRYPT(0) STORE(0) \
    LAST(1) CRYPT(1) STORE(1) CRYPT(2) STORE(2) CRYPT(3) CRYPT(4) CRYPT(5) STORE(5) STORE(4) CRYPT(6) STORE(6) \
    STORE(3) CRYPT(7) STORE(7)

INLINE void open_group_256(int first, const gcm_key *key, const uint8_t *in, uint8_t *out, const uint8_t *counters,
                           const uint8_t *powers, const uint8_t *halves, size_t at, workspace *w, hasher *h) {
  if (first) {
    RUN(OPEN_ORDER(CARRY(0)));
  } else {
    RUN(OPEN_ORDER());
  }
}
#undef LOAD
#undef COPY
#undef CRYPT
