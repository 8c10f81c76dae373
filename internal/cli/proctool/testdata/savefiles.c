// Files that are overwritten in place, shortened, replaced by rename, deleted
// and made again: under --files=save all of it comes back.
#include "fixture.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

enum { BIG = 3 << 20 };
static char big[BIG], now[BIG];

static void fill(char *p, int n, int s) {
  for (int i = 0; i < n; i++) p[i] = (char)('a' + (i / 7 + s * 5) % 26);
}

static void same(const char *path, const char *want, int n) {
  int fd = open(path, O_RDONLY);
  struct stat st;
  need(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == n);
  need(read(fd, now, n) == n && !memcmp(now, want, n));
  close(fd);
}

int main(void) {
  char small[64], page[100];
  int data = open("data", O_RDWR | O_CREAT | O_TRUNC, 0640), watch = open("data", O_RDONLY);
  int shrink = open("shrink", O_WRONLY | O_CREAT | O_TRUNC, 0600);
  int swap = -1, journal = -1;
  need(data >= 0 && watch >= 0 && shrink >= 0);
  for (int s = 0; s < 12; s++) {
    // A journal beside data comes and goes: the program must never find one
    // that it did not make.
    need(access("data-journal", F_OK) < 0);
    if (s % 3 == 2) {
      journal = open("data-journal", O_RDWR | O_CREAT | O_EXCL, 0600);
      need(journal >= 0 && write(journal, &s, sizeof s) == sizeof s);
    }
    fill(big, BIG, s);
    need(pwrite(data, big, BIG / 2, 0) == BIG / 2);
    if (s % 2) need(pwrite(data, big + BIG / 2, BIG / 2, BIG / 2) == BIG / 2);
    else need(ftruncate(data, BIG / 2) == 0);
    int n = snprintf(small, sizeof small, "%d%.*s", s, 12 - s, "xxxxxxxxxxxx");
    need(ftruncate(shrink, n) == 0 && pwrite(shrink, small, n, 0) == n);
    if (swap >= 0) close(swap);
    swap = open("swap.new", O_RDWR | O_CREAT | O_TRUNC, 0600);
    fill(page, sizeof page, s);
    need(swap >= 0 && write(swap, page, sizeof page) == sizeof page && rename("swap.new", "swap") == 0);
    step(s);
    same("data", big, s % 2 ? BIG : BIG / 2);
    need(lseek(watch, 0, SEEK_SET) == 0 && read(watch, now, 100) == 100 && !memcmp(now, big, 100));
    same("shrink", small, n);
    same("swap", page, sizeof page);
    need(lseek(swap, 0, SEEK_CUR) == sizeof page && pread(swap, now, 100, 0) == 100 && !memcmp(now, page, 100));
    struct stat a, b;
    need(fstat(swap, &a) == 0 && stat("swap", &b) == 0 && a.st_ino == b.st_ino);
    if (journal >= 0) {
      int was = -1;
      need(pread(journal, &was, sizeof was, 0) == sizeof was && was == s);
      need(stat("data-journal", &b) == 0 && fstat(journal, &a) == 0 && a.st_ino == b.st_ino);
      need(unlink("data-journal") == 0 && close(journal) == 0);
      journal = -1;
    }
  }
  gate();
  printf("fine\n");
  return 0;
}
