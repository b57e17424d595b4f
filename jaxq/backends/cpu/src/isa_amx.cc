// Placeholder of the amx kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_amx() { return kPlaceholder; }
