// Placeholder of the avx2 kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_avx2() { return kPlaceholder; }
