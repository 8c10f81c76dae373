// Mappings that come, go, grow and change; pages of zeroes over a file; guard
// pages with data behind them; advice; a growing stack and a growing heap.
#include "fixture.h"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

static int depth(int n) {
  volatile char block[4096];
  memset((void *)block, n, sizeof block);
  return n == 0 ? block[7] : depth(n - 1) + block[9];
}

int main(void) {
  const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
  int f = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
  static char page[8192];
  memset(page, 'f', sizeof page);
  need(write(f, page, sizeof page) == sizeof page);
  char *priv = mmap(0, 8192, prot, MAP_PRIVATE, f, 0);
  close(f);
  memset(priv, 0, 4096); // a page of zeroes that the file does not have
  char *none = mmap(0, 3 << 12, prot, flags, -1, 0);
  memset(none, 'n', 3 << 12);
  mprotect(none + 4096, 4096, PROT_NONE);
  mprotect(none + 8192, 4096, PROT_READ);
  char *wide = mmap(0, 1l << 36, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
  need(wide != MAP_FAILED);
  mprotect(wide + (1l << 30), 1 << 20, prot);
  memset(wide + (1l << 30), 'w', 1 << 20);
  char *thp = mmap(0, 8 << 20, prot, flags, -1, 0);
  madvise(thp, 8 << 20, MADV_HUGEPAGE);
  memset(thp, 't', 8 << 20);
  char *dont = mmap(0, 4096, prot, flags, -1, 0);
  madvise(dont, 4096, MADV_DONTDUMP);
  dont[0] = 'd';
  char *ro = mmap(0, 4096, PROT_READ, flags, -1, 0);
  static char out[4096];
  setvbuf(stdout, out, _IOFBF, sizeof out); // or malloc would move the break
  char *heap0 = sbrk(0);
  char *live[12];
  for (int s = 0; s < 12; s++) {
    live[s] = mmap(0, (s + 1) << 12, prot, flags, -1, 0);
    memset(live[s], 'a' + s, (s + 1) << 12);
    char *h = sbrk(8192);
    memset(h, s, 8192);
    if (s >= 3) munmap(live[s - 3], (s - 2) << 12);
    if (s == 5) mprotect(live[5], 4096, PROT_READ);
    if (s == 7) live[7] = mremap(live[7], 8 << 12, 64 << 12, MREMAP_MAYMOVE);
    need(depth(s * 3) >= 0);
    step(s);
  }
  gate();
  for (int s = 9; s < 12; s++)
    for (int i = 0; i < (s + 1) << 12; i++) need(live[s][i] == 'a' + s);
  for (int s = 0; s < 12; s++)
    for (int i = 0; i < 8192; i++) need(heap0[s * 8192 + i] == s);
  for (int i = 0; i < 4096; i++) need(priv[i] == 0 && priv[4096 + i] == 'f' && none[8192 + i] == 'n' && ro[i] == 0);
  mprotect(none + 4096, 4096, PROT_READ);
  for (int i = 0; i < 4096; i++) need(none[4096 + i] == 'n');
  for (int i = 0; i < 1 << 20; i += 511) need(wide[(1l << 30) + i] == 'w');
  for (int i = 0; i < 8 << 20; i += 511) need(thp[i] == 't');
  need(dont[0] == 'd' && sbrk(0) == heap0 + 12 * 8192);
  printf("fine\n");
  return 0;
}
