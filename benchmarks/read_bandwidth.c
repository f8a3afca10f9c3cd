// Read bandwidth of main memory: the sum of an array far larger than the caches.
// usage: read_bandwidth THREADS REPETITIONS   ->   GB/s of each repetition, one a line
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MIB = 512 };

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    omp_set_num_threads(atoi(argv[1]));
    const int64_t count = (int64_t)MIB * 1024 * 1024 / 8;
    uint64_t *data = aligned_alloc(64, count * 8);
    if (!data) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) data[i] = i;  // each thread touches, so owns, what it will read
    volatile uint64_t kept;
    for (int repetition = 0; repetition < atoi(argv[2]); repetition++) {
        uint64_t sum = 0;
        const double start = omp_get_wtime();
#pragma omp parallel for schedule(static) reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) sum += data[i];
        const double seconds = omp_get_wtime() - start;
        kept = sum;
        printf("%.3f\n", count * 8 / seconds / 1e9);
    }
    (void)kept;
    free(data);
    return 0;
}
