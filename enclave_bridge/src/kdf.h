/* HKDF (RFC 5869) of a suite's hash. */
#ifndef EB_KDF_H
#define EB_KDF_H

#include "suite.h"

/* prk has the suite's hash size. */
void eb_hkdf_extract(eb_suite suite, const uint8_t *salt, size_t salt_len, const uint8_t *ikm, size_t ikm_len,
                     uint8_t *prk);
/* out_len at most 255 times the hash size, else EB_ERR_LENGTH. */
eb_status eb_hkdf_expand(eb_suite suite, const uint8_t *prk, const uint8_t *info, size_t info_len, uint8_t *out,
                         size_t out_len);
/* Expand with info = "pagegate/v1 " || label. EB_ERR_ARGUMENT: the label is longer than any of ours. */
eb_status eb_hkdf_expand_label(eb_suite suite, const uint8_t *prk, const char *label, uint8_t *out, size_t out_len);

#endif
