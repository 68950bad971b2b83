// Searches every scenario, and then those that standard input names with one order of the real code weakened, a line
// each: the scenario, and the file, the line or name, the kind and the weakened half of a step, between tabs.
// Prints for each whether it is weakened, its name and claim, the states, whether the step was met, and what is wrong.
#include <cstdio>
#include <iostream>
#include <sstream>

#include "search.h"

namespace {

void run(const proof::Scenario& scenario, const proof::Weakening& weakening) {
  proof::Search search(scenario, weakening);
  const proof::Result result = search.run();
  std::printf("%d\t%s\t%s\t%zu\t%d\t%s\n", !weakening.half.empty(), scenario.name.c_str(), scenario.claim.c_str(),
              result.states, result.met, result.wrong.c_str());
  std::fflush(stdout);
}

}  // namespace

int main() {
  for (const proof::Make make : proof::scenarios()) run(make(), {});
  for (std::string line, name; std::getline(std::cin, line);) {
    std::istringstream fields(line);
    proof::Weakening w;
    for (std::string* field : {&name, &w.file, &w.step, &w.kind, &w.half}) std::getline(fields, *field, '\t');
    for (const proof::Make make : proof::scenarios())
      if (const proof::Scenario scenario = make(); scenario.name == name) {
        run(scenario, w);
        break;
      }
  }
}
