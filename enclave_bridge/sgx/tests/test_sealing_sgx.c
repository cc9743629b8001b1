/* Which enclave gets which sealing key again, with EGETKEY as the simulation has it. */
#include <stdbool.h>

#include "check.h"
#include "runtime.h"
#include "sealing_sgx.h"

typedef uint8_t sealing_key[EB_SEALING_KEY_SIZE];

static void become(const char *enclave, const char *signer, uint16_t svn) {
  memset(&stub_self.body, 0, sizeof stub_self.body);
  memcpy(stub_self.body.mr_enclave.m, enclave, strlen(enclave));
  memcpy(stub_self.body.mr_signer.m, signer, strlen(signer));
  stub_self.body.isv_svn = svn;
  stub_self.body.attributes.flags = SGX_FLAGS_INITTED;
}

static void key_now(eb_sgx_sealing_policy policy, sealing_key key) {
  eb_sgx_sealing sealing;
  CHECK_OK(eb_sgx_sealing_now(policy, &sealing));
  CHECK_OK(eb_sgx_sealing_key(&sealing, key, NULL));
}

static bool equal(const sealing_key a, const sealing_key b) { return memcmp(a, b, sizeof(sealing_key)) == 0; }

static void test_key_when_asked_for_again_is_the_same(void) {
  sealing_key first, again;
  become("build 1", "us", 1);
  key_now(EB_SGX_SEAL_TO_ENCLAVE, first);
  key_now(EB_SGX_SEAL_TO_ENCLAVE, again);
  CHECK(equal(first, again));
  CHECK(memcmp(first, first + 16, 16) != 0); /* its halves are two keys */
}

static void test_enclave_key_when_another_build_asks_is_another(void) {
  sealing_key first, other;
  become("build 1", "us", 1);
  key_now(EB_SGX_SEAL_TO_ENCLAVE, first);
  become("build 2", "us", 1);
  key_now(EB_SGX_SEAL_TO_ENCLAVE, other);
  CHECK(!equal(first, other));
}

static void test_signer_key_when_another_build_asks_is_the_same_and_another_signers_is_not(void) {
  sealing_key first, same, other;
  become("build 1", "us", 1);
  key_now(EB_SGX_SEAL_TO_SIGNER, first);
  become("build 2", "us", 1);
  key_now(EB_SGX_SEAL_TO_SIGNER, same);
  become("build 1", "them", 1);
  key_now(EB_SGX_SEAL_TO_SIGNER, other);
  CHECK(equal(first, same) && !equal(first, other));
}

static void test_key_when_asked_for_by_a_debug_enclave_is_another(void) {
  sealing_key first, other;
  become("build 1", "us", 1);
  key_now(EB_SGX_SEAL_TO_SIGNER, first);
  stub_self.body.attributes.flags |= SGX_FLAGS_DEBUG;
  key_now(EB_SGX_SEAL_TO_SIGNER, other);
  CHECK(!equal(first, other));
}

static void test_key_when_svn_rises_is_still_had_by_the_kept_facts_and_not_the_other_way_round(void) {
  eb_sgx_sealing old, raised;
  sealing_key first, later, zero = {0};
  become("build 1", "us", 1);
  CHECK_OK(eb_sgx_sealing_now(EB_SGX_SEAL_TO_SIGNER, &old));
  CHECK_OK(eb_sgx_sealing_key(&old, first, NULL));
  become("build 2", "us", 2);
  CHECK_OK(eb_sgx_sealing_now(EB_SGX_SEAL_TO_SIGNER, &raised));
  CHECK_OK(eb_sgx_sealing_key(&old, later, NULL));
  CHECK(equal(first, later));
  CHECK_OK(eb_sgx_sealing_key(&raised, later, NULL));
  CHECK(!equal(first, later));
  become("build 1", "us", 1);
  CHECK_STATUS(EB_ERR_CRYPTO, eb_sgx_sealing_key(&raised, later, NULL));
  CHECK(equal(later, zero));
}

static void test_key_when_the_policy_is_unknown_is_refused(void) {
  eb_sgx_sealing sealing;
  sealing_key key;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sgx_sealing_now((eb_sgx_sealing_policy)3, &sealing));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sgx_sealing_now(EB_SGX_SEAL_TO_SIGNER, NULL));
  CHECK_OK(eb_sgx_sealing_now(EB_SGX_SEAL_TO_SIGNER, &sealing));
  sealing.policy = (eb_sgx_sealing_policy)0;
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sgx_sealing_key(&sealing, key, NULL));
  CHECK_STATUS(EB_ERR_ARGUMENT, eb_sgx_sealing_key(NULL, key, NULL));
}

int main(void) {
  RUN(test_key_when_asked_for_again_is_the_same);
  RUN(test_enclave_key_when_another_build_asks_is_another);
  RUN(test_signer_key_when_another_build_asks_is_the_same_and_another_signers_is_not);
  RUN(test_key_when_asked_for_by_a_debug_enclave_is_another);
  RUN(test_key_when_svn_rises_is_still_had_by_the_kept_facts_and_not_the_other_way_round);
  RUN(test_key_when_the_policy_is_unknown_is_refused);
  return 0;
}
