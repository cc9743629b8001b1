/*
 * enclave_bridge: the trusted part of pagegate.
 *
 * The only place that holds private keys, session keys and plaintext staging.
 * No function returns a key or a page that has not been verified.
 *
 * Conventions
 *   - Every function returns eb_status; outputs come last and are written only on EB_OK
 *     unless the comment says otherwise.
 *   - Every buffer has its length beside it. Pointers may not be NULL unless the comment
 *     says so; a NULL pointer with a non-zero length is EB_ERR_ARGUMENT.
 *   - Handles are opaque, owned by the caller, freed by the matching _free (NULL is allowed).
 *     A handle keeps what it was made from alive (reference counted), so any order of
 *     freeing is safe. Freeing a handle another thread is using is not.
 *   - Functions on different handles may run at once. Calls on one session or transfer are
 *     serialised inside; a handshake belongs to one thread at a time.
 *   - After fork() every call in the child fails with EB_ERR_FORKED: secret memory is not
 *     inherited, so a nonce cannot be used by two processes.
 *   - No allocation happens in eb_pages_seal, eb_pages_seal_from and eb_pages_open, but for libcrypto's in the key
 *     derivation when an epoch ends (once in EB_REKEY_PAGES pages).
 *
 * The protocol is docs/protocol.md (from PROTOCOL.md v1).
 */
#ifndef ENCLAVE_BRIDGE_H
#define ENCLAVE_BRIDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EB_MUST_USE __attribute__((warn_unused_result))
#define EB_API __attribute__((visibility("default")))
#else
#define EB_MUST_USE
#define EB_API
#endif

#define EB_PAGE_SIZE 4096u
#define EB_RECORD_HEADER_SIZE 48u
#define EB_TAG_SIZE 16u
#define EB_RECORD_SIZE 4160u /* header + page + tag */
#define EB_NONCE_SIZE 32u
#define EB_SESSION_ID_SIZE 16u
#define EB_TRANSFER_ID_SIZE 16u
#define EB_BINDING_SIZE 64u      /* REPORT_DATA */
#define EB_MAX_MAC_SIZE 48u      /* HMAC-SHA-384; suite 2 makes 32 */
#define EB_MAX_PUBLIC_KEY_SIZE 97u
#define EB_MAX_MESSAGE_SIZE (1u << 20) /* one transcript message */
#define EB_REPLAY_WINDOW 8192u   /* sequence numbers a direction and epoch remembers */
#define EB_MAX_BAD_TAGS 16u      /* bad tags that close a session */
#define EB_REKEY_PAGES (UINT64_C(1) << 24)

/* The statuses live in one table, eb_status.def: X(name, number, text). Python's exceptions
 * are made from the same table through eb_status_name/eb_status_text. */
typedef enum {
#define X(name, number, text) name = number,
#include "eb_status.def"
#undef X
} eb_status;

typedef enum {
  EB_SUITE_P384_SHA384_AES256GCM = 1,
  EB_SUITE_P256_SHA256_AES128GCM = 2,
} eb_suite;

typedef enum { EB_ROLE_CLIENT = 1, EB_ROLE_SERVER = 2 } eb_role;

/* What kind of memory the secrets are in; reported, never silently downgraded. */
typedef enum {
  EB_MEMORY_SECRET = 1, /* memfd_secret(2): not mapped by the kernel, not in dumps */
  EB_MEMORY_LOCKED = 2, /* mlock + MADV_DONTDUMP + MADV_DONTFORK */
  EB_MEMORY_ENCLAVE = 3, /* an SGX enclave's own: encrypted, and no other software can read it */
} eb_memory_kind;

typedef struct eb_bridge eb_bridge;
typedef struct eb_handshake eb_handshake;
typedef struct eb_session eb_session;
typedef struct eb_transfer eb_transfer;
typedef struct eb_source eb_source;

/* Stable name ("EB_ERR_REPLAYED") and one-line text of a status; never NULL. */
EB_API const char *eb_status_name(int status);
EB_API const char *eb_status_text(int status);
/* Number of known statuses, and the i-th of them, for bindings. */
EB_API size_t eb_status_count(void);
EB_API int eb_status_at(size_t index);

/* ---- bridge: one pool of secret memory ------------------------------------------- */

typedef struct {
  uint32_t max_sessions; /* 1..65536; secret memory for these is reserved at open */
  uint32_t max_handshakes;
  const char *gcm_kernel; /* NULL: the fastest this CPU can run; else its name, for tests and benchmarks */
  const char *file_io;    /* NULL: io_uring where the kernel lets us, else pread; or one of these by name */
} eb_bridge_options;

/* What confines a bridge that is a process of its own (eb_isolated.h); bits of eb_bridge_info.hardening. */
typedef enum {
  EB_HARDENED_SECCOMP = 1,           /* system calls outside a short list kill it: no files, sockets, programs */
  EB_HARDENED_NO_NEW_PRIVS = 2,      /* PR_SET_NO_NEW_PRIVS */
  EB_HARDENED_NOT_DUMPABLE = 4,      /* PR_SET_DUMPABLE 0: no core, no ptrace without CAP_SYS_PTRACE */
  EB_HARDENED_PARENT_DEATH = 8,      /* it ends with the process that started it */
  EB_HARDENED_LIMITS = 16,           /* no core file, few descriptors, bounded memory */
  EB_HARDENED_NO_CAPABILITIES = 32,
  EB_HARDENED_USER_NAMESPACE = 64,   /* of its own */
  EB_HARDENED_NETWORK_NAMESPACE = 128, /* of its own, with no interface */
  EB_HARDENED_ALL = 255,
} eb_hardening;

typedef struct {
  eb_memory_kind memory;
  size_t secret_bytes;      /* reserved secret memory */
  uint32_t sessions_live;
  uint32_t handshakes_live;
  char gcm_kernel[32];      /* which AES-GCM implementation seals pages: "avx512", "vaes256", "aesni", "openssl" */
  char libcrypto[64];       /* OpenSSL_version */
  char file_io[16];         /* how files are read and written: "io_uring" or "pread"; chosen at open */
  uint32_t process;         /* pid of the bridge process; 0: it is in this one */
  uint32_t hardening;       /* eb_hardening bits in force; 0 in process */
} eb_bridge_info;

/* Reserves secret memory and runs the power-on self-test (known-answer seal/open).
 * options may be NULL (defaults: 256 sessions, 64 handshakes).
 * EB_ERR_ARGUMENT: also for a gcm_kernel or file_io that is unknown or that cannot be had here.
 * EB_ERR_MEMORY_LOCK: the memlock limit is too low; EB_ERR_SELF_TEST: refuse to work. */
EB_API EB_MUST_USE eb_status eb_bridge_open(const eb_bridge_options *options, eb_bridge **bridge);
EB_API void eb_bridge_free(eb_bridge *bridge);
EB_API EB_MUST_USE eb_status eb_bridge_get_info(eb_bridge *bridge, eb_bridge_info *info);
/* Fresh random bytes from the bridge's DRBG (public values: nonces, ids). */
EB_API EB_MUST_USE eb_status eb_random(eb_bridge *bridge, uint8_t *out, size_t out_len);

/* ---- handshake -------------------------------------------------------------------- */

/* Makes one ephemeral key for each suite, in order (n 1..2, no repeats). */
EB_API EB_MUST_USE eb_status eb_handshake_new(eb_bridge *bridge, eb_role role, const eb_suite *suites,
                                              size_t n, eb_handshake **handshake);
EB_API void eb_handshake_free(eb_handshake *handshake);
/* SEC 1 uncompressed point of the key for one suite. EB_ERR_BUFFER when out_cap is short. */
EB_API EB_MUST_USE eb_status eb_handshake_public_key(eb_handshake *handshake, eb_suite suite,
                                                     uint8_t *out, size_t out_cap, size_t *out_len);
/* Extends the transcript by a 4-byte big-endian length and the message. */
EB_API EB_MUST_USE eb_status eb_handshake_absorb(eb_handshake *handshake, const uint8_t *message, size_t len);
/* Fixes the suite; the others' private keys are destroyed. Needed before binding/derive.
 * EB_ERR_SUITE when it was not offered or one is already fixed. */
EB_API EB_MUST_USE eb_status eb_handshake_select(eb_handshake *handshake, eb_suite suite);
/* REPORT_DATA for `role`'s evidence: SHA-512("pagegate/v1 server evidence" or
 * "pagegate/v1 client evidence", 0x00, transcript hash so far). */
EB_API EB_MUST_USE eb_status eb_handshake_binding(eb_handshake *handshake, eb_role role,
                                                  uint8_t out[EB_BINDING_SIZE]);
/* ECDH with the peer's point, then the key schedule with salt = transcript hash so far (T2).
 * EB_ERR_POINT: not on the curve, infinity, wrong length, or the own key (reflection) or its negative.
 * The private key is destroyed whatever the outcome, and after a failure the handshake is dead. */
EB_API EB_MUST_USE eb_status eb_handshake_derive(eb_handshake *handshake, const uint8_t *peer_key, size_t len);
/* HMAC(finished key of the OWN role, transcript hash so far). */
EB_API EB_MUST_USE eb_status eb_handshake_finished(eb_handshake *handshake, uint8_t *mac, size_t mac_cap,
                                                   size_t *mac_len);
/* Checks the PEER's finished MAC over the transcript hash so far, in constant time.
 * EB_ERR_FINISHED on mismatch: the handshake is dead from then on. */
EB_API EB_MUST_USE eb_status eb_handshake_check_finished(eb_handshake *handshake, const uint8_t *mac, size_t len);
/* Turns the handshake into a session. Needs derive, an own finished and a checked peer finished.
 * The handshake is spent: every later call on it but _free is EB_ERR_STATE. */
EB_API EB_MUST_USE eb_status eb_handshake_session(eb_handshake *handshake,
                                                  const uint8_t session_id[EB_SESSION_ID_SIZE],
                                                  eb_session **session);

/* ---- session ------------------------------------------------------------------------ */

typedef struct {
  uint32_t send_epoch, recv_epoch;
  uint64_t sent_pages, opened_pages; /* over the life of the session */
  uint64_t replayed, tampered, refused;
  int closed;                        /* 1 after EB_MAX_BAD_TAGS or eb_session_close */
} eb_session_stats;

EB_API void eb_session_free(eb_session *session);
/* Zeroises the keys now; every later call but _get_stats and _free is EB_ERR_SESSION_CLOSED. */
EB_API EB_MUST_USE eb_status eb_session_close(eb_session *session);
EB_API EB_MUST_USE eb_status eb_session_get_stats(eb_session *session, eb_session_stats *stats);
/* Moves the sending direction to the next epoch (HKDF ratchet). Happens by itself at EB_REKEY_PAGES. */
EB_API EB_MUST_USE eb_status eb_session_rekey(eb_session *session);

/* Which key authenticates a control message. Each purpose has a key of its own a direction. */
typedef enum {
  EB_MAC_TRANSFER = 1, /* begin, commit, abort, get, region end */
  EB_MAC_RECEIPT = 2,  /* ack, committed, page receipt */
  EB_MAC_CONTROL = 3,  /* anything else that a later version adds (ring set-up, rekey request) */
} eb_mac_purpose;
/* HMAC of a control message under the OWN role's key for that purpose. */
EB_API EB_MUST_USE eb_status eb_session_mac(eb_session *session, eb_mac_purpose purpose, const uint8_t *message,
                                            size_t len, uint8_t *mac, size_t mac_cap, size_t *mac_len);
/* Checks a MAC made by the PEER, in constant time. EB_ERR_MAC on mismatch. */
EB_API EB_MUST_USE eb_status eb_session_check_mac(eb_session *session, eb_mac_purpose purpose,
                                                  const uint8_t *message, size_t len, const uint8_t *mac,
                                                  size_t mac_len);

/* ---- transfer: which page of a window has which tag --------------------------------- */

typedef struct {
  uint32_t region;
  uint64_t base_gpa; /* 4 KiB aligned */
  uint64_t pages;    /* 1..2^28; base_gpa + pages * 4096 must not wrap */
} eb_window;

/* One side's account of a transfer: for each page of the window the tag of its newest record.
 * Allocated here (16 bytes and a bit a page), so the page path allocates nothing. */
EB_API EB_MUST_USE eb_status eb_transfer_new(eb_bridge *bridge, const uint8_t transfer_id[EB_TRANSFER_ID_SIZE],
                                             const eb_window *window, eb_transfer **transfer);
EB_API void eb_transfer_free(eb_transfer *transfer);
/* Gives a receiving transfer where to put verified pages: `fd`, pages * 4096 bytes from fd_offset,
 * which is page aligned; the caller may close fd afterwards. Memory (memfd, huge pages, a PCI BAR, a
 * device) is mapped: it must not be cut while it is (seal a memfd with F_SEAL_SHRINK). A file of a
 * file system is written: a full disk is then EB_ERR_TARGET_FULL, any other failure EB_ERR_TARGET_IO.
 * Over RLIMIT_FSIZE the kernel also sends SIGXFSZ: ignore it, as Python does.
 * EB_ERR_TARGET when it cannot be mapped or written (open it for both), or is shorter. EB_ERR_STATE
 * when the transfer has a target. */
EB_API EB_MUST_USE eb_status eb_transfer_set_target_fd(eb_transfer *transfer, int fd, uint64_t fd_offset);
/* The same with memory of the caller that outlives the transfer (embedding, reads into a buffer). */
EB_API EB_MUST_USE eb_status eb_transfer_set_target_memory(eb_transfer *transfer, uint8_t *memory, size_t len);
/* Distinct pages recorded so far. */
EB_API EB_MUST_USE eb_status eb_transfer_pages(eb_transfer *transfer, uint64_t *pages);
/* Sealing a page again under resume replaces its tag; `forget` drops one that was never acknowledged. */
EB_API EB_MUST_USE eb_status eb_transfer_forget(eb_transfer *transfer, uint64_t first_gpa, uint64_t pages);
/* HMAC(OWN transfer key, "commit" 0x00 || transfer_id || pages u64le || (gpa u64le || tag) of each recorded page
 * by ascending gpa). Streams through the list: no copy of it is made. */
EB_API EB_MUST_USE eb_status eb_transfer_commit_mac(eb_session *session, eb_transfer *transfer, uint8_t *mac,
                                                    size_t mac_cap, size_t *mac_len);
/* The same, checked against the PEER's MAC in constant time. EB_ERR_MAC on mismatch. */
EB_API EB_MUST_USE eb_status eb_transfer_check_commit_mac(eb_session *session, eb_transfer *transfer,
                                                          const uint8_t *mac, size_t mac_len);

/* ---- source: a file whose pages are sealed without being mapped ---------------------- */

/* Bytes [offset, offset + len) of a regular file, memfd or tmpfs file that is open for reading (len
 * at least 1, any alignment). The descriptor is duplicated: the caller may close fd. Any number
 * of threads may use a source at once. The bytes are read when they are sealed: a file that is cut
 * or fails then is EB_ERR_SOURCE_UNREADABLE, never a signal.
 * EB_ERR_SOURCE_UNREADABLE: no such file (a pipe, a device), not open for reading, or shorter. */
EB_API EB_MUST_USE eb_status eb_source_open(eb_bridge *bridge, int fd, uint64_t offset, uint64_t len,
                                            eb_source **source);
EB_API void eb_source_free(eb_source *source);

/* ---- pages ---------------------------------------------------------------------------- */

typedef struct {
  uint64_t pages;      /* records sealed, or opened and written to the target */
  uint64_t bad_index;  /* open: index of the record refused, or UINT64_MAX: none was */
  uint64_t nanoseconds; /* time inside the call, CLOCK_MONOTONIC */
  uint32_t epoch;      /* epoch of the last record */
  uint64_t sequence;   /* sequence number of the last record */
} eb_result;

/* Seals len / 4096 pages of `plain` (any alignment) as consecutive gpas from first_gpa, with
 * consecutive sequence numbers, into records (len / 4096 * 4160 bytes; must not overlap plain).
 * transfer may be NULL (TransferPage); window of the transfer is checked otherwise.
 * `result` may be NULL. The sequence numbers are used up even if sealing fails; what was written to
 * records by then is zeroed again. `records` is written once and never read, so it may be memory
 * that a hostile process writes.
 * EB_ERR_LENGTH, EB_ERR_BUFFER, EB_ERR_UNALIGNED, EB_ERR_OUT_OF_RANGE, EB_ERR_WRONG_REGION,
 * EB_ERR_EXHAUSTED, EB_ERR_SESSION_CLOSED. */
EB_API EB_MUST_USE eb_status eb_pages_seal(eb_session *session, eb_transfer *transfer, uint32_t region,
                                           uint64_t first_gpa, const uint8_t *plain, size_t len,
                                           uint8_t *records, size_t records_cap, size_t *records_len,
                                           eb_result *result);

/* The same for len / 4096 pages of a source from source_offset, read into secret memory and sealed there: no
 * plaintext is in the caller's memory, and the file is not mapped. Less than a page of `len` may be
 * beyond the end of the source: it is zero. The session is taken while the file is read.
 * EB_ERR_LENGTH: also when the source ends earlier. EB_ERR_SOURCE_UNREADABLE: the file was cut, or
 * reading it failed; nothing is left in records. */
EB_API EB_MUST_USE eb_status eb_pages_seal_from(eb_session *session, eb_transfer *transfer, uint32_t region,
                                                uint64_t first_gpa, eb_source *source, uint64_t source_offset,
                                                size_t len, uint8_t *records, size_t records_cap,
                                                size_t *records_len, eb_result *result);

/* Opens records_len / 4160 records in order: header checks (session, region and window of the
 * transfer, alignment, reserved zero, epoch), replay window, decryption into locked staging, tag,
 * and only then the copy to the transfer's target and its tag list. `records` is read once:
 * it may be memory that a hostile process writes. Stops at the first bad record and returns its
 * status; result (which is always written) says how many before it were applied. A refused
 * record changes nothing but counters.
 * EB_ERR_REPLAYED, EB_ERR_TAMPERED, EB_ERR_EPOCH, EB_ERR_HEADER, EB_ERR_OUT_OF_RANGE,
 * EB_ERR_WRONG_SESSION, EB_ERR_WRONG_REGION, EB_ERR_UNALIGNED, EB_ERR_LENGTH, EB_ERR_STATE (no
 * target), EB_ERR_SESSION_CLOSED.
 * A target that is a file has been written when this returns (not synced). EB_ERR_TARGET_FULL,
 * EB_ERR_TARGET_IO: some pages after result.pages verified, but may be written in part; they are not in the
 * transfer's account, and their sequence numbers are used up: they have to be sealed again.
 * Epochs: records of the previous, the current and the next one are accepted. The first that
 * verifies under the next makes it the current. A sequence number from EB_REKEY_PAGES on is
 * EB_ERR_EPOCH: no epoch has that many. The EB_MAX_BAD_TAGS-th bad tag closes the session. */
EB_API EB_MUST_USE eb_status eb_pages_open(eb_session *session, eb_transfer *transfer, const uint8_t *records,
                                           size_t records_len, eb_result *result);

/* Reads the public fields of one record header (for logs and error messages; proves nothing). */
typedef struct {
  uint8_t session_id[EB_SESSION_ID_SIZE];
  uint32_t epoch, flags, region, reserved;
  uint64_t sequence, gpa;
} eb_record_header;
EB_API EB_MUST_USE eb_status eb_record_parse(const uint8_t *record, size_t len, eb_record_header *header);

#ifdef __cplusplus
}
#endif
#endif
