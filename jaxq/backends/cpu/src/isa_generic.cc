// Placeholder of the generic kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_generic() { return kPlaceholder; }
