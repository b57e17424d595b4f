// Placeholder of the avx512 kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_avx512() { return kPlaceholder; }
