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
#define EB_MAX_WINDOW_PAGES (UINT64_C(1) << 28)
#define EB_MAX_REGION_NAME 63u

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
typedef struct eb_channel eb_channel;
typedef struct eb_source eb_source;
typedef struct eb_sealing eb_sealing;
typedef struct eb_guard eb_guard;

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
  uint32_t max_guards; /* guards and sealing keys at once, at most 65536; 0: 64 */
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
  uint64_t pages;    /* 1..EB_MAX_WINDOW_PAGES; base_gpa + pages * 4096 must not wrap */
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

/* ---- sealing: a key that this machine can have again ------------------------------------ */

/* A handle on 32 bytes in secret memory; from them come the keys of guards that are to survive a restart. */
EB_API void eb_sealing_free(eb_sealing *sealing);
/* The key in a file, for simulation: it protects nothing from whoever can read the file. An empty file gets a
 * fresh key (and fsync); otherwise it has 32 bytes. EB_ERR_SEALING: not a regular file of this user, mode with
 * bits for others, another length, or I/O. The caller keeps fd. */
EB_API EB_MUST_USE eb_status eb_sealing_open_file(eb_bridge *bridge, int fd, eb_sealing **sealing);

/* What a key of the SNP firmware is bound to (AMD 56860, MSG_KEY_REQ). */
#define EB_SNP_ROOT_VCEK 0u
#define EB_SNP_ROOT_VMRK 1u
#define EB_SNP_FIELD_GUEST_POLICY 1u
#define EB_SNP_FIELD_IMAGE_ID 2u
#define EB_SNP_FIELD_FAMILY_ID 4u
#define EB_SNP_FIELD_MEASUREMENT 8u
#define EB_SNP_FIELD_GUEST_SVN 16u
#define EB_SNP_FIELD_TCB_VERSION 32u
#define EB_SNP_FIELDS_KNOWN 63u
typedef struct {
  uint32_t root_key;
  uint64_t guest_fields;
  uint32_t vmpl; /* 0..3 */
  uint32_t guest_svn;   /* counts when its field is selected, as does the next */
  uint64_t tcb_version;
} eb_snp_key_options;
/* Why there is no key: the last attempt's errors, each 0 when it was not that. */
typedef struct {
  int system_error; /* errno of the ioctl */
  uint32_t fw_error, vmm_error;
  uint32_t status; /* of MSG_KEY_RSP */
} eb_snp_failure;
/* SNP_GET_DERIVED_KEY on fd, an open /dev/sev-guest, again for about 3 s while the host is busy. The key goes from
 * the kernel into secret memory. EB_ERR_SEALING, and then *failure says why. The caller keeps fd. */
EB_API EB_MUST_USE eb_status eb_sealing_open_snp(eb_bridge *bridge, int fd, const eb_snp_key_options *options,
                                                 eb_snp_failure *failure, eb_sealing **sealing);

/* ---- guard: a MAC for each page of memory that others can write ---------------------------- */

/* What a guard's keys are bound to. */
typedef struct {
  const char *region; /* 1..EB_MAX_REGION_NAME bytes and a zero */
  uint64_t generation;
  uint64_t pages; /* 1..EB_MAX_WINDOW_PAGES */
} eb_guard_scope;

typedef struct {
  uint64_t first, pages;
} eb_page_range;

typedef struct {
  uint64_t pages;     /* checked */
  uint64_t bad_pages; /* of them are not what was written, or are gone */
  size_t ranges;      /* written to bad, ascending; bad pages beyond its room are only counted */
} eb_verify_result;

/* A guard over the pages of fd (a file, memfd or device; pages * 4096 bytes from fd_offset, page aligned), all of
 * which must be zero: a page that was never written verifies as zero. MACs are made from the bridge's private copy
 * of a page, never by reading it back, under AES-256-GMAC with the page's index and a write counter as nonce, and a
 * fresh key a guard. With a sealing key the guard can be saved; it may be NULL. The caller keeps fd, and 24 bytes a
 * page are allocated. EB_ERR_TARGET: fd has no such pages. EB_ERR_LIMIT: no room for another guard. */
EB_API EB_MUST_USE eb_status eb_guard_new(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd,
                                          uint64_t fd_offset, eb_guard **guard);
EB_API void eb_guard_free(eb_guard *guard);
/* Verified pages of a transfer go to the guard's memory, and get their MACs. In place of a target; the guard has
 * as many pages as the window. EB_ERR_STATE when there is a target. */
EB_API EB_MUST_USE eb_status eb_transfer_set_guard(eb_transfer *transfer, eb_guard *guard);
/* Seals pages of the guard's memory like eb_pages_seal, from private copies that verified: first_gpa is looked up in
 * the transfer's window, whose first page is the guard's first. EB_ERR_TAMPERED: nothing was sealed, and
 * result->bad_index is the page of the window that is not as it was written. `result` may not be NULL. */
EB_API EB_MUST_USE eb_status eb_guard_seal(eb_guard *guard, eb_session *session, eb_transfer *transfer,
                                           uint64_t first_gpa, uint64_t pages, uint8_t *records, size_t records_cap,
                                           size_t *records_len, eb_result *result);
/* Checks pages from `first`. Writes go on meanwhile; each page is as it was at one moment. EB_OK whether or not
 * there are bad ones. */
EB_API EB_MUST_USE eb_status eb_guard_verify(eb_guard *guard, uint64_t first, uint64_t pages, eb_page_range *bad,
                                             size_t bad_cap, eb_verify_result *result);
/* Copies all pages of `from` (as many) to this guard's memory, each verified and with a new MAC. EB_ERR_TAMPERED:
 * *bad_page of `from` does not verify; the copy is incomplete. */
EB_API EB_MUST_USE eb_status eb_guard_carry(eb_guard *guard, eb_guard *from, uint64_t *bad_page);

/* Writes the table of MACs to table_fd, authenticated under the sealing key, and cuts it there. The caller syncs.
 * EB_ERR_STATE: the guard has no sealing key, or only verifies. EB_ERR_TARGET_FULL, EB_ERR_TARGET_IO. */
EB_API EB_MUST_USE eb_status eb_guard_save(eb_guard *guard, int table_fd);
/* A guard from what was saved and journalled, for a region that is at scope->generation. It verifies, and makes no
 * MACs until eb_guard_renew. A journalled write that may not have reached the pages is made again.
 * EB_ERR_TABLE: not a table of this region, size, generation or sealing key, or changed. */
EB_API EB_MUST_USE eb_status eb_guard_load(eb_bridge *bridge, eb_sealing *sealing, const eb_guard_scope *scope, int fd,
                                           uint64_t fd_offset, int table_fd, eb_guard **guard);
/* Before a write in place, which is to make `generation`: it is appended to the saved table (with the page) and
 * synced before the page is written, so that a crash leaves neither a page without its MAC nor half a page. */
EB_API EB_MUST_USE eb_status eb_guard_journal(eb_guard *guard, int table_fd, uint64_t generation);
/* New keys and MACs for the same pages, each verified first. Reads wait. EB_ERR_TAMPERED: *bad_page does not
 * verify, nothing has changed. Save it before eb_guard_journal. */
EB_API EB_MUST_USE eb_status eb_guard_renew(eb_guard *guard, uint64_t generation, uint64_t *bad_page);

/* ---- channel: sealed pages through shared memory --------------------------------------- */

/* Two rings, one a direction, in memory that two processes share (src/ring.h). Neither trusts the
 * other: what is in the memory is no more believed than what comes from a socket. Messages are
 * records, sealed straight into the ring and opened straight out of it, or anything of the caller's. A
 * channel holds no secret, so it may be in a process without a bridge (which puts and takes records).
 *
 * One thread at a time sends and one receives on a channel; they may be different ones. Any thread may
 * close. Deadlines are CLOCK_MONOTONIC nanoseconds, past ones (0) mean not to wait. Every call but
 * _free can return EB_ERR_RING_CLOSED, EB_ERR_RING_CORRUPT, EB_ERR_RING_TIMEOUT and EB_ERR_FORKED. */

#define EB_CHANNEL_MIN_CAPACITY 4096u    /* bytes a direction, a power of two */
#define EB_CHANNEL_MAX_CAPACITY 67108864u
#define EB_CHANNEL_RECORDS 1u            /* kind of a message of page records; all others are the caller's */

typedef enum {
  /* A memfd that can no longer shrink: what a peer hands over. Anything else is refused, since a peer
   * that cuts the file would kill this process. */
  EB_CHANNEL_SEALED = 1,
  /* A file or device that this side's operator names (an ivshmem BAR). No seals; the peer may be in another
   * virtual machine, where no futex reaches it, so a waiting end looks again every 50 us. */
  EB_CHANNEL_NAMED = 2,
} eb_channel_memory;

typedef struct {
  uint32_t kind;
  uint64_t number; /* as the sender gave it */
  size_t len;      /* without kind and number */
} eb_channel_message;

/* Shared bytes of a channel; 0 for a capacity that is not allowed. */
EB_API size_t eb_channel_bytes(size_t capacity);
/* The longest message: half the capacity, less what frames it. */
EB_API size_t eb_channel_max_message(size_t capacity);
/* A new memfd with an empty channel, sealed (F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL). The caller closes it.
 * EB_ERR_ARGUMENT, EB_ERR_RING_MEMORY. */
EB_API EB_MUST_USE eb_status eb_channel_create(size_t capacity, int *fd);
/* Makes an empty channel at the start of a file or device; by one side, before either attaches. */
EB_API EB_MUST_USE eb_status eb_channel_format(int fd, size_t capacity);
/* Maps one side's end; once a side. The caller may close fd afterwards. `session` is whose records will be sealed into
 * it and opened out of it: its bridge maps sealed memory too, wherever it is. With NULL, or with named memory, a bridge
 * in another process gets copies. EB_ERR_RING_MEMORY: not mappable, too short, or not of the kind said.
 * EB_ERR_RING_CORRUPT: holds no channel of this capacity. EB_ERR_LIMIT, EB_ERR_BRIDGE_DIED: as that bridge says. */
EB_API EB_MUST_USE eb_status eb_channel_attach(eb_session *session, eb_role role, int fd, size_t capacity,
                                               eb_channel_memory memory, eb_channel **channel);
/* Ends the channel for both sides; who waits gets EB_ERR_RING_CLOSED. Safe to repeat. */
EB_API EB_MUST_USE eb_status eb_channel_close(eb_channel *channel);
EB_API void eb_channel_free(eb_channel *channel);

/* eb_pages_seal straight into the ring, as one message of records with `number`. result may be NULL.
 * EB_ERR_LENGTH: also for more pages than a message holds. Nothing is sent unless EB_OK. */
EB_API EB_MUST_USE eb_status eb_channel_seal(eb_channel *channel, eb_session *session, eb_transfer *transfer,
                                             uint32_t region, uint64_t first_gpa, const uint8_t *plain, size_t len,
                                             uint64_t number, uint64_t deadline_ns, eb_result *result);
/* Sends a message of the caller's, or records that were sealed before. */
EB_API EB_MUST_USE eb_status eb_channel_put(eb_channel *channel, uint32_t kind, uint64_t number,
                                            const uint8_t *message, size_t len, uint64_t deadline_ns);
/* Waits for a message and says what it is; the same one until it is opened or taken. */
EB_API EB_MUST_USE eb_status eb_channel_next(eb_channel *channel, uint64_t deadline_ns, eb_channel_message *message);
/* eb_pages_open of the message that eb_channel_next returned, straight out of the ring. The message is
 * gone afterwards, whatever the outcome. EB_ERR_STATE when there is none, or it is not of records. */
EB_API EB_MUST_USE eb_status eb_channel_open(eb_channel *channel, eb_session *session, eb_transfer *transfer,
                                             eb_result *result);
/* Copies the message out that eb_channel_next returned. It stays on EB_ERR_BUFFER. EB_ERR_STATE when there
 * is none. */
EB_API EB_MUST_USE eb_status eb_channel_take(eb_channel *channel, uint8_t *out, size_t out_cap, size_t *out_len);

#ifdef __cplusplus
}
#endif
#endif
