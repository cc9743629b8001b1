#include "lent.h"

eb_status eb_lent_new(eb_session *session, int fd, uint8_t *at, size_t bytes, eb_lent **lent) {
  (void)session, (void)fd, (void)at, (void)bytes;
  *lent = NULL;
  return EB_OK;
}

void eb_lent_free(eb_lent *lent) { (void)lent; }

eb_status eb_lent_seal(eb_lent *lent, eb_session *session, eb_transfer *transfer, uint32_t region, uint64_t first_gpa,
                       const uint8_t *plain, size_t len, uint8_t *records, size_t records_cap, eb_result *result) {
  size_t sealed = 0;
  (void)lent;
  return eb_pages_seal(session, transfer, region, first_gpa, plain, len, records, records_cap, &sealed, result);
}

eb_status eb_lent_open(eb_lent *lent, eb_session *session, eb_transfer *transfer, const uint8_t *records, size_t len,
                       eb_result *result) {
  (void)lent;
  return eb_pages_open(session, transfer, records, len, result);
}
