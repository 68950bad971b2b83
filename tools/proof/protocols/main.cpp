// Searches the scenarios, and once more with one order of the real code weakened.
//
//   search                  every scenario: what it claims, its number of states, and what is wrong with it
//   search table            and each order weakened that standard input names, in the scenario that misses it
//
// `python -m tools.proof.protocols` builds and runs this.
#include <cstdio>
#include <cstdlib>

#include "scenarios.h"

namespace {

constexpr std::size_t kMostStates = 3'000'000;

struct Prepared {
  proof::Make make;
  proof::Scenario scenario;
  proof::Search search;
};

const char* name_of(proof::Kind kind) {
  static const char* const kNames[] = {"load", "store", "add", "swap", "fence"};
  return kNames[static_cast<int>(kind)];
}

// Every way to weaken one order of a step by one half.
std::vector<std::pair<proof::Weakening, std::string>> halves(const proof::Step& step) {
  using W = proof::Weakening;
  std::vector<std::pair<W, std::string>> weakenings;
  const auto add = [&](W::Half half, const char* what) { weakenings.push_back({{step.site, step.kind, half}, what}); };
  const bool both = step.order == __ATOMIC_ACQ_REL;
  if (step.kind == proof::Kind::fence) {
    add(W::all, "all");
    return weakenings;
  }
  if (both || step.order == __ATOMIC_ACQUIRE) add(W::acquire, "acquire");
  if (both || step.order == __ATOMIC_RELEASE) add(W::release, "release");
  if (step.kind == proof::Kind::swap && step.failure == __ATOMIC_ACQUIRE) add(W::failure, "acquire of a failure");
  return weakenings;
}

// For each weakening, by its file, site and half, the scenario that finds it.
std::unordered_map<std::string, std::string> read_hints() {
  std::unordered_map<std::string, std::string> hints;
  char line[400];
  while (std::fgets(line, sizeof line, stdin)) {
    std::string text = line;
    if (!text.empty() && text.back() == '\n') text.pop_back();
    if (const std::size_t tab = text.rfind('\t'); tab != std::string::npos) hints[text.substr(0, tab)] = text.substr(tab + 1);
  }
  return hints;
}

}  // namespace

int main(int argc, char** argv) {
  const bool table = argc > 1 && std::string(argv[1]) == "table";
  std::vector<Prepared> all;
  std::vector<proof::Step> steps;
  for (const proof::Make make : proof::scenarios()) {
    const proof::Scenario s = make();
    all.push_back({make, s, proof::Search(s)});
    const proof::Result result = all.back().search.run({}, kMostStates);
    std::printf("scenario\t%s\t%s\t%zu\t%s\n", s.name.c_str(), s.claim.c_str(), result.states, result.wrong.c_str());
    for (const std::string& step : result.run) std::printf("step\t%s\n", step.c_str());
    std::fflush(stdout);
    for (const proof::Step& step : all.back().search.ordered_steps()) {
      const bool known = std::any_of(steps.begin(), steps.end(), [&](const proof::Step& other) {
        return other.kind == step.kind && proof::same_site(other.site, step.site);
      });
      if (!known) steps.push_back(step);
    }
  }
  if (!table) return 0;
  const auto hints = read_hints();
  for (const proof::Step& step : steps) {
    const std::string path = step.site.file, file = path.substr(path.rfind('/') + 1);
    for (const auto& [weakening, half] : halves(step)) {
      const std::string key =
          file + "\t" + (*step.site.text ? step.site.text : std::to_string(step.site.line)) + " " + name_of(step.kind) + "\t" + half;
      const auto hint = hints.find(key);
      if (hint == hints.end()) continue;
      std::string by, wrong;
      for (Prepared& p : all) {
        if (hint->second != p.scenario.name) continue;
        p.make();  // the memory before the run
        wrong = p.search.run(weakening, kMostStates).wrong;
        if (wrong.empty()) continue;
        by = p.scenario.name;
        break;
      }
      std::printf("weakened\t%s\t%s\t%s\n", key.c_str(), by.c_str(), wrong.c_str());
      std::fflush(stdout);
    }
  }
  return 0;
}
