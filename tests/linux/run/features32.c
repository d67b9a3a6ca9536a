/* A 32-bit program without a C library, so that a compiler for 64 bits alone can build it: prints
 * a line, and exits with 7 if its pointers have four bytes.
 */
static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

void _start(void)
{
	static const char text[] = "32 bits\n";

	call(4, 1, (long)text, sizeof text - 1);
	call(1, sizeof(void *) == 4 ? 7 : 1, 0, 0);
}
