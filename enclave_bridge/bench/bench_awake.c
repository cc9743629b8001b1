/*
 * Keeps a core awake: a virtual machine's second core that wakes takes from the first where its host has no whole one left
 * for it, so what is measured beside a core that sleeps is not what a busy service gets.
 *
 * pagegate-bench-awake: pauses for ever on the cores that it may use. It ends with its parent, and stops (SIGSTOP) and goes on
 * (SIGCONT) as it is told.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

#include "pause.h"

int main(void) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
    perror("pagegate-bench-awake");
    return 1;
  }
  for (;;) eb_pause_cpu();
}
