/* What a loop says to the CPU that waits for memory: spare the core's other thread. */
#ifndef EB_PAUSE_H
#define EB_PAUSE_H

static inline void eb_pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif
