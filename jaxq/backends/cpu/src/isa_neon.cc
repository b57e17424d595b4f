// Placeholder of the neon kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_neon() { return kPlaceholder; }
