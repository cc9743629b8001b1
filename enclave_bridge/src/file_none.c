/* Where there are no files: in an enclave. Nothing can be opened, so nothing is read or written. */
#include "bridge.h"
#include "shared_io.h"

eb_status eb_staging_open(eb_bridge *bridge, const char *name) {
  (void)bridge;
  return name == NULL ? EB_OK : EB_ERR_ARGUMENT;
}
void eb_staging_close(eb_bridge *bridge) { (void)bridge; }
const char *eb_staging_name(const eb_bridge *bridge) { return (void)bridge, "none"; }
eb_staging *eb_staging_take(eb_bridge *bridge) { return &bridge->staging[0]; }
void eb_staging_give(eb_bridge *bridge, eb_staging *staging, size_t used) { (void)bridge, (void)staging, (void)used; }
uint8_t *eb_staging_chunk(const eb_staging *staging, size_t chunk) { return staging->memory + chunk * EB_CHUNK_SIZE; }
void eb_staging_read(eb_staging *staging, size_t chunk, int fd, uint64_t offset, size_t len) {
  (void)staging, (void)chunk, (void)fd, (void)offset, (void)len;
}
int eb_staging_wait(eb_staging *staging, size_t chunk) { return (void)staging, (void)chunk, EB_FILE_CUT; }
int eb_file_readable(int fd, uint64_t offset, uint64_t len) { return (void)fd, (void)offset, (void)len, -1; }
void eb_file_close(int fd) { (void)fd; }
bool eb_file_is_stored(const eb_bridge *bridge, int fd) { return (void)bridge, (void)fd, false; }
eb_status eb_stored_open(eb_stored_file *file, int fd, uint64_t offset, uint64_t len) {
  return (void)file, (void)fd, (void)offset, (void)len, EB_ERR_TARGET;
}
eb_status eb_stored_write(eb_stored_file *file, uint64_t at, const uint8_t *from, size_t len) {
  return (void)file, (void)at, (void)from, (void)len, EB_ERR_TARGET_IO;
}
void eb_stored_close(eb_stored_file *file) { (void)file; }
eb_status eb_shared_open(const eb_bridge *bridge, eb_shared *shared, int fd, uint64_t offset, uint64_t len) {
  return (void)bridge, (void)shared, (void)fd, (void)offset, (void)len, EB_ERR_TARGET;
}
void eb_shared_close(eb_shared *shared) { (void)shared; }
bool eb_shared_read(const eb_shared *shared, uint64_t at, uint8_t *into, size_t len) {
  return (void)shared, (void)at, (void)into, (void)len, false;
}
eb_status eb_shared_write(eb_shared *shared, uint64_t at, const uint8_t *from, size_t len) {
  return (void)shared, (void)at, (void)from, (void)len, EB_ERR_TARGET_IO;
}
int eb_file_hold(int fd) { return (void)fd, -1; }
bool eb_file_get(int fd, uint64_t at, uint8_t *into, size_t len) {
  return (void)fd, (void)at, (void)into, (void)len, false;
}
eb_status eb_file_put(int fd, uint64_t at, const uint8_t *from, size_t len) {
  return (void)fd, (void)at, (void)from, (void)len, EB_ERR_TARGET_IO;
}
eb_status eb_file_sync(int fd) { return (void)fd, EB_ERR_TARGET_IO; }
eb_status eb_file_cut(int fd, uint64_t len) { return (void)fd, (void)len, EB_ERR_TARGET_IO; }
