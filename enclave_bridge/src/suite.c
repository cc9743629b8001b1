#include "suite.h"

static const eb_suite_facts facts[EB_SUITES] = {
    {"P-384", "SHA384", "AES-256-GCM", 48, 32, 48, 97},
    {"P-256", "SHA256", "AES-128-GCM", 32, 16, 32, 65},
};

const eb_suite_facts *eb_suite_find(eb_suite suite) {
  if (suite != EB_SUITE_P384_SHA384_AES256GCM && suite != EB_SUITE_P256_SHA256_AES128GCM) return NULL;
  return &facts[suite - 1];
}
