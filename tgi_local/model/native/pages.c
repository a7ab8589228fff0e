#define _GNU_SOURCE
#include "pages.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#define LARGE ((size_t)2 << 20)

void *pages_create(size_t size) {
  if (!size || size > SIZE_MAX - LARGE) return NULL;
  size_t whole = size + (size >= LARGE ? LARGE : 0); /* room to begin at a large page's boundary */
  uint8_t *memory = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  if (size < LARGE) return memory;
  uint8_t *start = (uint8_t *)(((uintptr_t)memory + LARGE - 1) / LARGE * LARGE);
  size_t end = (size + 4095) / 4096 * 4096;
  if (start > memory) munmap(memory, (size_t)(start - memory));
  if (start + end < memory + whole) munmap(start + end, (size_t)(memory + whole - start) - end);
#ifdef MADV_HUGEPAGE
  madvise(start, size, MADV_HUGEPAGE);
#endif
  return start;
}

void pages_free(void *memory, size_t size) {
  if (memory) munmap(memory, size);
}

void pages_return_freed(void) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}
