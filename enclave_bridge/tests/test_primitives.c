/* Statuses, HMAC and HKDF, AES-GCM, the replay window and the record header, each by itself. */
#include <openssl/evp.h>

#include "gcm.h"
#include "hmac.h"
#include "kdf.h"
#include "pair.h"
#include "record.h"
#include "window.h"

static size_t unhex(const char *hex, uint8_t *out) {
  size_t n = strlen(hex) / 2;
  for (size_t i = 0; i < n; i++) {
    unsigned byte = 0;
    CHECK(sscanf(hex + 2 * i, "%2x", &byte) == 1);
    out[i] = (uint8_t)byte;
  }
  return n;
}

static void test_status_table_when_read_gives_stable_names(void) {
  size_t rows = 0;
#define X(name, number, text) rows++;
#include "eb_status.def"
#undef X
  CHECK(eb_status_count() == rows);
  for (size_t i = 0; i < eb_status_count(); i++) CHECK(eb_status_at(i) == (int)i);
  CHECK(eb_status_at(eb_status_count()) == -1);
  CHECK(strcmp(eb_status_name(EB_ERR_REPLAYED), "EB_ERR_REPLAYED") == 0);
  CHECK(strcmp(eb_status_text(EB_OK), "ok") == 0);
  CHECK(strcmp(eb_status_name(999), "EB_ERR_UNKNOWN") == 0);
  CHECK(strcmp(eb_status_text(-1), "unknown status") == 0);
}

static void test_hmac_when_given_known_input_gives_known_output(void) {
  /* RFC 4231, cases 1, 2 and 6 (a key longer than a block), and their like with no data */
  static const struct {
    const char *key, *data, *sha256, *sha384;
  } known[] = {
      {"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "4869205468657265",
       "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
       "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6"},
      {"4a656665", "7768617420646f2079612077616e7420666f72206e6f7468696e673f",
       "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
       "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649"},
      {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
       "54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a65204b6579202d2048617368204b6579204669727374",
       "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
       "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952"},
  };
  const eb_suite suites[] = {EB_SUITE_P256_SHA256_AES128GCM, EB_SUITE_P384_SHA384_AES256GCM};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    for (size_t j = 0; j < 2; j++) {
      uint8_t key[256], data[256], expected[64], out[EB_MAX_HASH_SIZE];
      const size_t key_len = unhex(known[i].key, key), len = unhex(known[i].data, data);
      const size_t size = unhex(j == 0 ? known[i].sha256 : known[i].sha384, expected);
      eb_hmac mac;
      eb_hmac_begin(&mac, suites[j], key, key_len);
      eb_hmac_update(&mac, data, len);
      eb_hmac_end(&mac, out);
      CHECK(memcmp(out, expected, size) == 0);
      for (size_t k = 0; k < sizeof mac; k++) CHECK(((const uint8_t *)&mac)[k] == 0);
    }
}

/* Against libcrypto's own: every length of a key and of data up to some blocks, in pieces, from a copied state. */
static void test_hmac_when_compared_with_libcryptos_is_the_same(void) {
  static const struct {
    eb_suite suite;
    const char *digest;
  } suites[] = {{EB_SUITE_P256_SHA256_AES128GCM, "SHA256"}, {EB_SUITE_P384_SHA384_AES256GCM, "SHA384"}};
  uint8_t key[300], data[300], out[EB_MAX_HASH_SIZE], expected[EVP_MAX_MD_SIZE];
  for (size_t i = 0; i < sizeof key; i++) {
    key[i] = (uint8_t)(i * 7 + 1);
    data[i] = (uint8_t)(i * 13 + 5);
  }
  for (size_t i = 0; i < 2; i++)
    for (size_t key_len = 0; key_len <= sizeof key; key_len += key_len < 140 ? 1 : 37) {
      eb_hmac keyed;
      eb_hmac_begin(&keyed, suites[i].suite, key, key_len);
      for (size_t len = 0; len <= sizeof data; len += 1 + key_len % 31) {
        eb_hmac mac = keyed;
        size_t size = 0;
        eb_hmac_update(&mac, data, len / 3);
        eb_hmac_update(&mac, data + len / 3, len - len / 3);
        eb_hmac_end(&mac, out);
        CHECK(EVP_Q_mac(NULL, "HMAC", NULL, suites[i].digest, NULL, key, key_len, data, len, expected, sizeof expected,
                        &size) != NULL);
        CHECK(memcmp(out, expected, size) == 0);
      }
    }
}

static void test_hkdf_when_given_known_input_gives_known_output(void) {
  static const struct {
    eb_suite suite;
    const char *ikm, *salt, *info, *prk, *okm;
  } known[] = {
      /* RFC 5869 A.1, A.2, A.3 */
      {EB_SUITE_P256_SHA256_AES128GCM, "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "000102030405060708090a0b0c",
       "f0f1f2f3f4f5f6f7f8f9", "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
       "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"},
      {EB_SUITE_P256_SHA256_AES128GCM,
       "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f30313233343536"
       "3738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f",
       "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f90919293949596"
       "9798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
       "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6"
       "e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
       "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
       "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09"
       "b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"},
      {EB_SUITE_P256_SHA256_AES128GCM, "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "", "",
       "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
       "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"},
      /* SHA-384 with A.1's input, made by pyca/cryptography */
      {EB_SUITE_P384_SHA384_AES256GCM, "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", "000102030405060708090a0b0c",
       "f0f1f2f3f4f5f6f7f8f9",
       "704b39990779ce1dc548052c7dc39f303570dd13fb39f7acc564680bef80e8dec70ee9a7e1f3e293ef68eceb072a5ade",
       "9b5097a86038b805309076a44b3a9f38063e25b516dcbf369f394cfab43685f748b6457763e4f0204fc5"},
  };
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    uint8_t ikm[128], salt[128], info[128], prk[EB_MAX_HASH_SIZE], expected[128], okm[128];
    size_t ikm_len = unhex(known[i].ikm, ikm), salt_len = unhex(known[i].salt, salt);
    size_t info_len = unhex(known[i].info, info), prk_len = unhex(known[i].prk, expected);
    eb_hkdf_extract(known[i].suite, salt, salt_len, ikm, ikm_len, prk);
    CHECK(memcmp(prk, expected, prk_len) == 0);
    size_t okm_len = unhex(known[i].okm, expected);
    CHECK_OK(eb_hkdf_expand(known[i].suite, prk, info, info_len, okm, okm_len));
    CHECK(memcmp(okm, expected, okm_len) == 0);
  }
}

static void test_hkdf_when_asked_for_too_much_refuses(void) {
  static uint8_t out[255 * 32 + 1];
  uint8_t prk[32] = {1};
  CHECK_OK(eb_hkdf_expand(EB_SUITE_P256_SHA256_AES128GCM, prk, NULL, 0, out, sizeof out - 1));
  CHECK_STATUS(EB_ERR_LENGTH, eb_hkdf_expand(EB_SUITE_P256_SHA256_AES128GCM, prk, NULL, 0, out, sizeof out));
  CHECK_STATUS(EB_ERR_ARGUMENT,
               eb_hkdf_expand_label(EB_SUITE_P256_SHA256_AES128GCM, prk,
                                    "a label that is much longer than any label of the key schedule", out, 32));
}

static eb_lane_secret lane;

/* McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 1, 4, 13 and 16 (also NIST's). */
static void check_known_answers(const eb_gcm_ops *ops) {
  static _Alignas(64) uint8_t secret[EB_GCM_SECRET_SIZE];
  static const char *p60 =
      "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657"
      "ba637b39";
  static const char *a20 = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
  static const struct {
    const char *key, *iv, *plain, *aad, *cipher, *tag;
  } known[] = {
      {"00000000000000000000000000000000", "000000000000000000000000", "", "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
      {"feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", NULL, NULL,
       "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac9"
       "73d58e091",
       "5bc94fbc3221a5db94fae95ae7121a47"},
      {"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "", "", "",
       "530f8afbc74536b9a963b4f1c4cb738b"},
      {"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", NULL, NULL,
       "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0"
       "abcc9f662",
       "76fc6ece0f4e1768cddf8853bb2d551b"},
  };
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    uint8_t key[32], iv[12], plain[64], aad[32], cipher[64], tag[16], expected[64];
    size_t key_len = unhex(known[i].key, key), verified = 0;
    unhex(known[i].iv, iv);
    size_t len = unhex(known[i].plain != NULL ? known[i].plain : p60, plain);
    size_t aad_len = unhex(known[i].aad != NULL ? known[i].aad : a20, aad);
    eb_gcm gcm = {.ops = ops, .secret = secret};
    eb_gcm_item item = {.iv = iv, .aad = aad, .in = plain, .out = cipher, .tag = tag};
    CHECK_OK(gcm.ops->setup(&gcm, key_len, true));
    CHECK_STATUS(EB_ERR_CRYPTO, gcm.ops->set_key(&gcm, key, 24));
    CHECK_OK(gcm.ops->set_key(&gcm, key, key_len));
    CHECK_OK(gcm.ops->seal(&gcm, lane.work, &item, 1, aad_len, len));
    unhex(known[i].cipher, expected);
    CHECK(memcmp(cipher, expected, len) == 0);
    unhex(known[i].tag, expected);
    CHECK(memcmp(tag, expected, 16) == 0);
    eb_gcm_release(&gcm);

    for (size_t b = 0; b < sizeof secret; b++) CHECK(secret[b] == 0);
    gcm = (eb_gcm){.ops = ops, .secret = secret};
    item = (eb_gcm_item){.iv = iv, .aad = aad, .in = cipher, .out = cipher, .tag = tag};
    CHECK_OK(gcm.ops->setup(&gcm, key_len, false));
    CHECK_OK(gcm.ops->set_key(&gcm, key, key_len));
    CHECK_OK(gcm.ops->open(&gcm, lane.work, &item, 1, aad_len, len, &verified));
    CHECK(verified == 1 && memcmp(cipher, plain, len) == 0);
    tag[15] ^= 1;
    CHECK_OK(gcm.ops->open(&gcm, lane.work, &item, 1, aad_len, len, &verified));
    CHECK(verified == 0);
    eb_gcm_release(&gcm);
  }
}

static const eb_gcm_ops *const kernels[] = {&eb_gcm_openssl, &batched_ops, &eb_gcm_aesni, &eb_gcm_vaes256,
                                            &eb_gcm_avx512};
enum { KERNELS = sizeof kernels / sizeof kernels[0] };

static void test_gcm_when_given_known_input_gives_known_output(void) {
  for (size_t k = 0; k < KERNELS; k++)
    if (kernels[k]->usable()) check_known_answers(kernels[k]);
}

static void test_gcm_when_it_has_no_key_fails(void) {
  static _Alignas(64) uint8_t secret[EB_GCM_SECRET_SIZE], page[EB_PAGE_SIZE];
  uint8_t iv[EB_GCM_IV_SIZE] = {0}, aad[EB_RECORD_HEADER_SIZE] = {0}, tag[EB_TAG_SIZE] = {0};
  const eb_gcm_item item = {.iv = iv, .aad = aad, .in = page, .out = page, .tag = tag};
  for (size_t k = 2; k < KERNELS; k++) {
    eb_gcm gcm = {.ops = kernels[k], .secret = secret};
    size_t verified = 1;
    CHECK_OK(gcm.ops->setup(&gcm, 32, true));
    for (size_t len = EB_PAGE_SIZE; len > 0; len -= EB_PAGE_SIZE / 2) {
      CHECK_STATUS(EB_ERR_CRYPTO, gcm.ops->seal(&gcm, lane.work, &item, 1, sizeof aad, len));
      CHECK_STATUS(EB_ERR_CRYPTO, gcm.ops->open(&gcm, lane.work, &item, 1, sizeof aad, len, &verified));
      CHECK(verified == 0 && page[0] == 0);
    }
    eb_gcm_release(&gcm);
  }
}

static eb_status lies(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len, size_t len,
                      size_t *verified) {
  (void)gcm, (void)work, (void)items, (void)aad_len, (void)len;
  *verified = n; /* every tag is good */
  return EB_OK;
}

static eb_status seals_wrong(eb_gcm *gcm, uint8_t *work, const eb_gcm_item *items, size_t n, size_t aad_len,
                             size_t len) {
  eb_status status = eb_gcm_openssl.seal(gcm, work, items, n, aad_len, len);
  items[n - 1].tag[0] ^= 1;
  return status;
}

static void test_self_test_when_a_kernel_is_wrong_refuses_it(void) {
  static _Alignas(64) uint8_t secret[EB_GCM_SECRET_SIZE];
  for (size_t k = 0; k < KERNELS; k++)
    if (kernels[k]->usable()) CHECK_OK(eb_gcm_self_test(kernels[k], secret, &lane));
  eb_gcm_ops broken = batched_ops;
  broken.open = lies;
  CHECK_STATUS(EB_ERR_SELF_TEST, eb_gcm_self_test(&broken, secret, &lane));
  broken = batched_ops;
  broken.seal = seals_wrong;
  CHECK_STATUS(EB_ERR_SELF_TEST, eb_gcm_self_test(&broken, secret, &lane));
}

static void test_replay_window_when_numbers_repeat_or_age_refuses_them(void) {
  eb_replay replay;
  eb_replay_reset(&replay);
  CHECK(eb_replay_fresh(&replay, 0));
  eb_replay_mark(&replay, 0);
  CHECK(!eb_replay_fresh(&replay, 0));
  eb_replay_mark(&replay, 5);
  for (uint64_t s = 1; s <= 4; s++) CHECK(eb_replay_fresh(&replay, s));
  eb_replay_mark(&replay, 3);
  CHECK(!eb_replay_fresh(&replay, 3) && eb_replay_fresh(&replay, 4));
  eb_replay_mark(&replay, EB_REPLAY_WINDOW); /* pushes 0 out */
  CHECK(!eb_replay_fresh(&replay, 0) && eb_replay_fresh(&replay, 1) && !eb_replay_fresh(&replay, 3));
  eb_replay_mark(&replay, EB_REPLAY_WINDOW + 3); /* takes 3's place */
  CHECK(!eb_replay_fresh(&replay, 3) && eb_replay_fresh(&replay, 4) && !eb_replay_fresh(&replay, 5));
  eb_replay_mark(&replay, UINT64_C(1) << 40); /* everything is new */
  CHECK(!eb_replay_fresh(&replay, EB_REPLAY_WINDOW + 3));
  CHECK(eb_replay_fresh(&replay, (UINT64_C(1) << 40) - EB_REPLAY_WINDOW + 1));
  CHECK(!eb_replay_fresh(&replay, (UINT64_C(1) << 40) - EB_REPLAY_WINDOW));
}

/* Against the plainest model: a list of everything ever marked. */
static void test_replay_window_when_numbers_are_random_agrees_with_a_model(void) {
  enum { SPAN = 40000, STEPS = 60000 };
  static uint8_t marked[SPAN + 20000];
  uint64_t highest = 0, seed = 12345;
  bool any = false;
  eb_replay replay;
  eb_replay_reset(&replay);
  for (int step = 0; step < STEPS; step++) {
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint64_t sequence = (seed >> 33) % (step / 2 + 9000);
    bool too_old = any && highest >= EB_REPLAY_WINDOW && sequence <= highest - EB_REPLAY_WINDOW;
    bool expected = !too_old && !marked[sequence];
    CHECK(eb_replay_fresh(&replay, sequence) == expected);
    if (!expected) continue;
    eb_replay_mark(&replay, sequence);
    marked[sequence] = 1;
    if (!any || sequence > highest) highest = sequence;
    any = true;
  }
}

static void test_record_header_when_written_reads_back(void) {
  const eb_record_header header = {"0123456789abcde", 0x01020304, 0x11121314, 0x21222324, 0x31323334,
                                   UINT64_C(0x4142434445464748), UINT64_C(0x5152535455565758)};
  static const uint8_t expected[] = {0x04, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42,
                                     0x41, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 0x58, 0x57, 0x56, 0x55, 0x54,
                                     0x53, 0x52, 0x51};
  uint8_t record[EB_RECORD_SIZE] = {0};
  eb_record_header read;
  memset(&read, 0, sizeof read);
  eb_record_write(record, &header);
  CHECK(memcmp(record, header.session_id, 16) == 0 && memcmp(record + 16, expected, sizeof expected) == 0);
  CHECK_OK(eb_record_parse(record, sizeof record, &read));
  CHECK(memcmp(read.session_id, header.session_id, 16) == 0 && read.epoch == header.epoch);
  CHECK(read.flags == header.flags && read.region == header.region && read.reserved == header.reserved);
  CHECK(read.sequence == header.sequence && read.gpa == header.gpa);
  CHECK_STATUS(EB_ERR_LENGTH, eb_record_parse(record, sizeof record - 1, &read));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_record_parse(NULL, sizeof record, &read));
}

static void test_nonce_when_the_number_is_one_changes_the_last_byte(void) {
  const uint8_t iv[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  uint8_t nonce[12];
  eb_record_nonce(nonce, iv, 1);
  CHECK(memcmp(nonce, iv, 11) == 0 && nonce[11] == 13);
  eb_record_nonce(nonce, iv, UINT64_C(0xff) << 56);
  CHECK(memcmp(nonce, iv, 4) == 0 && nonce[4] == (5 ^ 0xff) && memcmp(nonce + 5, iv + 5, 7) == 0);
}

int main(void) {
  RUN(test_status_table_when_read_gives_stable_names);
  RUN(test_hmac_when_given_known_input_gives_known_output);
  RUN(test_hmac_when_compared_with_libcryptos_is_the_same);
  RUN(test_hkdf_when_given_known_input_gives_known_output);
  RUN(test_hkdf_when_asked_for_too_much_refuses);
  RUN(test_gcm_when_given_known_input_gives_known_output);
  RUN(test_gcm_when_it_has_no_key_fails);
  RUN(test_self_test_when_a_kernel_is_wrong_refuses_it);
  RUN(test_replay_window_when_numbers_repeat_or_age_refuses_them);
  RUN(test_replay_window_when_numbers_are_random_agrees_with_a_model);
  RUN(test_record_header_when_written_reads_back);
  RUN(test_nonce_when_the_number_is_one_changes_the_last_byte);
  return 0;
}
