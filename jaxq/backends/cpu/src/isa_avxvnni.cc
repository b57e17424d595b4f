// Placeholder of the avxvnni kernels.
namespace {
constexpr int kPlaceholder = 0;
}
int jaxq_placeholder_avxvnni() { return kPlaceholder; }
