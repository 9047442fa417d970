//! Rules compiled to a trie: which rule decides about a method and a decoded path.
//!
//! Among the rules that cover the method the most specific path wins, segment by segment from the
//! left: literal before `:name` before `/*`. The walk therefore tries, at each node, the literal
//! child, then the `:name` child, then the `/*` that ends here, and takes the first that covers the
//! method: its cost grows with the depth of the path, not with the number of rules.
//! Ties and rules that can never win are found here, once, when the trie is built.
//! Not here: which texts a path can be read as (`reading`).

use std::collections::HashMap;

use super::Requirement;
use super::method::{self, Methods, SLOTS};
use super::path::segments;
use super::pattern::{Pattern, Segment, fold};
use super::query::{ByParameter, Query, QueryCondition};

/// Whether a rule decides or is only tried out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is left out of the decision; what it would have answered is counted and logged.
    Report,
}

/// One rule, as compiled from the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Which paths.
    pub pattern: Pattern,
    /// Which methods.
    pub methods: Methods,
    /// Conditions on the query; with any, the rule only ever raises the requirement.
    pub query: Vec<QueryCondition>,
    /// What a request that it decides about must bring.
    pub allow: Requirement,
    /// Whether it decides.
    pub mode: Mode,
}

/// A rule's place in the file, 0 the first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RuleId(pub u32);

impl RuleId {
    pub(super) fn of(index: usize) -> Self {
        Self(u32::try_from(index).expect("a configuration is far below four thousand million rules"))
    }

    /// The index into the list that the policy was built from.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The paths that the gateway answers itself.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Endpoint {
    /// Credentials in, token out.
    Login,
    /// The token that it is called with ends.
    Logout,
    /// A live token in, its successor out.
    Rotate,
    /// The public keys.
    Jwks,
}

/// What is wrong with a list of rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RuleProblem {
    /// Two rules would decide about the same requests, and neither is the more specific. Refused.
    Tie { rule: RuleId, other: RuleId, method: Option<String> },
    /// The rule covers exactly a path that the gateway answers itself. Refused.
    CoversEndpoint { rule: RuleId, endpoint: Endpoint },
    /// Other rules take every request that this one matches. A warning.
    NeverWins { rule: RuleId },
    /// A query rule that asks for nothing raises nothing. A warning.
    RaisesNothing { rule: RuleId },
    /// A rule lets a POST pass for less than the query rule asks, and a body may carry the
    /// parameter just as well. A warning.
    BodyCouldCarry { rule: RuleId, laxer: RuleId },
}

impl RuleProblem {
    /// Whether the list is refused for it.
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Tie { .. } | Self::CoversEndpoint { .. })
    }
}

/// What the trie found for one path and method.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hit {
    Rule(RuleId),
    Own(Endpoint),
}

/// All rules of one snapshot, compiled.
#[derive(Debug)]
pub(super) struct Rules {
    exact: Trie<Vec<Terminal>>,
    /// With letter case folded; `None` where no literal has any to fold.
    folded: Option<Trie<Vec<Terminal>>>,
    /// Rules with `query`, letter case folded; `None` without any.
    by_query: Option<Trie<ByParameter<RuleId>>>,
}

impl Rules {
    /// Compiles those of `rules` that `takes` picks.
    pub(super) fn new(rules: &[Rule], own: &[(Pattern, Endpoint)], takes: impl Fn(&Rule) -> bool) -> Self {
        let mut this = Self { exact: Trie::default(), folded: None, by_query: None };
        let mut folded = Trie::default();
        for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| takes(rule)) {
            let id = RuleId::of(index);
            match rule.query.first() {
                Some(first) => {
                    this.by_query.get_or_insert_default().at(&rule.pattern, true).insert(first, id);
                }
                None => {
                    this.exact.insert(rule, id, false);
                    folded.insert(rule, id, true);
                }
            }
        }
        for (pattern, endpoint) in own {
            this.exact.insert_own(pattern, *endpoint, false);
            folded.insert_own(pattern, *endpoint, true);
        }
        let cased =
            rules.iter().any(|rule| rule.pattern.is_cased()) || own.iter().any(|(own, _)| own.is_cased());
        // Where no literal has a case, the exact trie is the folded one.
        this.folded = cased.then_some(folded);
        this
    }

    /// The rule for a path whose literals are compared exactly.
    pub(super) fn find(&self, method: &str, text: &str) -> Option<Hit> {
        self.exact.find(method, text).next()
    }

    /// The rules for a path whose literals are compared without regard to letter case; several
    /// where rules differ in case alone. `folded` is the text with its case folded.
    pub(super) fn find_folded<'a>(
        &'a self,
        method: &'a str,
        folded: &'a str,
    ) -> impl Iterator<Item = Hit> + 'a {
        self.folded.as_ref().unwrap_or(&self.exact).find(method, folded)
    }

    /// Whether letter case can matter to a path without upper-case letters.
    pub(super) fn is_cased(&self) -> bool {
        self.folded.is_some()
    }

    /// Calls `each` with the query rules that match, whatever their methods; with one more than once
    /// where several parameters satisfy it.
    pub(super) fn each_by_query(
        &self,
        rules: &[Rule],
        text: &str,
        query: &Query,
        mut each: impl FnMut(RuleId),
    ) {
        let Some(by_query) = &self.by_query else { return };
        by_query.each(0, segments(&fold(text)), &mut |by_parameter| {
            by_parameter.each(query, |id| {
                if rules[id.index()].query[1..].iter().all(|condition| condition.holds(query)) {
                    each(id);
                }
            });
        });
    }

    /// Whether any rule looks at the query.
    pub(super) fn reads_query(&self) -> bool {
        self.by_query.is_some()
    }
}

/// Everything that is wrong with `rules`, in file order.
pub(super) fn problems(rules: &[Rule], own: &[(Pattern, Endpoint)]) -> Vec<RuleProblem> {
    let mut problems = Vec::new();
    let mut by_path: HashMap<(&[Segment], bool), Vec<usize>> = HashMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let id = RuleId::of(index);
        if let Some((_, endpoint)) = own.iter().find(|(own, _)| own.same_paths(&rule.pattern)) {
            problems.push(RuleProblem::CoversEndpoint { rule: id, endpoint: *endpoint });
        }
        if !rule.query.is_empty() {
            if rule.allow == Requirement::Public {
                problems.push(RuleProblem::RaisesNothing { rule: id });
            }
            continue;
        }
        let same = by_path.entry(rule.pattern.parts()).or_default();
        for &other in same.iter() {
            let before = &rules[other];
            let tied = before.mode == rule.mode && before.methods.is_any() == rule.methods.is_any();
            if let Some(method) = rule.methods.common(&before.methods).filter(|_| tied) {
                let method = (!rule.methods.is_any()).then(|| method.to_owned());
                problems.push(RuleProblem::Tie { rule: id, other: RuleId::of(other), method });
                break;
            }
        }
        same.push(index);
    }
    let enforced = Rules::new(rules, &[], |rule| rule.mode == Mode::Enforce);
    let mut wins = vec![false; rules.len()];
    enforced.exact.mark_winners(&mut wins);
    for (index, rule) in rules.iter().enumerate() {
        let tied =
            |problem: &RuleProblem| matches!(problem, RuleProblem::Tie { rule, .. } if rule.index() == index);
        if rule.query.is_empty() && rule.mode == Mode::Enforce && !wins[index] && !problems.iter().any(tied) {
            problems.push(RuleProblem::NeverWins { rule: RuleId::of(index) });
        }
        if !rule.query.is_empty() && rule.methods.covers("GET") {
            for text in rule.pattern.samples() {
                if let Some(Hit::Rule(laxer)) = enforced.find("POST", &text)
                    && rules[laxer.index()].allow < rule.allow
                {
                    problems.push(RuleProblem::BodyCouldCarry { rule: RuleId::of(index), laxer });
                    break;
                }
            }
        }
    }
    problems.sort_by_key(|problem| match problem {
        RuleProblem::Tie { rule, .. }
        | RuleProblem::CoversEndpoint { rule, .. }
        | RuleProblem::NeverWins { rule }
        | RuleProblem::RaisesNothing { rule }
        | RuleProblem::BodyCouldCarry { rule, .. } => *rule,
    });
    problems
}

/// A node's index; the root is 0.
type NodeId = u32;

/// Patterns by their segments; `T` is what is kept for those that end at one node.
#[derive(Debug)]
struct Trie<T> {
    nodes: Vec<Node<T>>,
}

impl<T: Default> Default for Trie<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

#[derive(Debug, Default)]
struct Node<T> {
    literals: HashMap<Box<str>, NodeId, foldhash::fast::RandomState>,
    any: Option<NodeId>,
    /// Of the pattern that ends here.
    here: T,
    /// Of the pattern that ends here with `/*`.
    below: T,
}

/// How strongly a rule claims a method: by listing it, by listing GET where it is HEAD, or by
/// listing nothing. Of equals the one on trial stands first, so that it can be compared with the rule
/// that it is to replace.
type Rank = (u8, bool);

/// The rules of one path, resolved by method. A node of the exact trie has one terminal; in the
/// folded trie there is one for each spelling.
#[derive(Debug)]
struct Terminal {
    pattern: Pattern,
    slots: [Option<(Rank, Hit)>; SLOTS],
    /// Methods listed by name that have no slot of their own.
    named: Vec<(String, Rank, Hit)>,
}

impl Terminal {
    fn new(pattern: Pattern) -> Self {
        Self { pattern, slots: [None; SLOTS], named: Vec::new() }
    }

    fn add(&mut self, rule: &Rule, id: RuleId) {
        let hit = Hit::Rule(id);
        let rank = |strength: u8| (strength, rule.mode == Mode::Report);
        let listed = rank(if rule.methods.is_any() { 0 } else { 2 });
        for slot in rule.methods.slots() {
            self.claim(slot, listed, hit);
        }
        if rule.methods.implies_head() {
            self.claim(method::slot("HEAD"), rank(1), hit);
        }
        for name in rule.methods.named() {
            match self.named.iter_mut().find(|(known, ..)| known == name) {
                Some(entry) if entry.1 < listed => (entry.1, entry.2) = (listed, hit),
                Some(_) => {}
                None => self.named.push((name.clone(), listed, hit)),
            }
        }
    }

    fn claim(&mut self, slot: usize, rank: Rank, hit: Hit) {
        if self.slots[slot].is_none_or(|(held, _)| held < rank) {
            self.slots[slot] = Some((rank, hit));
        }
    }

    fn find(&self, method: &str) -> Option<Hit> {
        if let Some((.., hit)) = self.named.iter().find(|(name, ..)| name == method) {
            return Some(*hit);
        }
        self.slots[method::slot(method)].map(|(_, hit)| hit)
    }

    /// Marks the rules that hold a method which is not `taken` from above.
    fn mark(&self, wins: &mut [bool], taken: impl Fn(usize) -> bool) {
        let slots = (0..SLOTS).filter(|slot| !taken(*slot)).filter_map(|slot| self.slots[slot]);
        for hit in slots.map(|(_, hit)| hit).chain(self.named.iter().map(|(.., hit)| *hit)) {
            if let Hit::Rule(id) = hit {
                wins[id.index()] = true;
            }
        }
    }
}

impl<T: Default> Trie<T> {
    /// What is kept for `pattern`.
    fn at(&mut self, pattern: &Pattern, folded: bool) -> &mut T {
        let (segments, open) = pattern.parts();
        let mut node = 0;
        for segment in segments {
            node = self.child(node, segment, folded);
        }
        let node = &mut self.nodes[node as usize];
        if open { &mut node.below } else { &mut node.here }
    }

    fn child(&mut self, node: NodeId, segment: &Segment, folded: bool) -> NodeId {
        let next = NodeId::try_from(self.nodes.len()).expect("fewer nodes than segments in the file");
        let parent = &mut self.nodes[node as usize];
        let child = match segment {
            Segment::Any => *parent.any.get_or_insert(next),
            Segment::Literal(literal) => {
                let key = if folded { fold(literal) } else { literal.clone() };
                *parent.literals.entry(key.into_boxed_str()).or_insert(next)
            }
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        child
    }

    /// Calls `each` with what is kept for every pattern that matches, the less specific ones too.
    fn each<'a>(
        &self,
        node: NodeId,
        mut rest: impl Iterator<Item = &'a str> + Clone,
        each: &mut impl FnMut(&T),
    ) {
        let node = &self.nodes[node as usize];
        each(&node.below);
        let Some(segment) = rest.next() else { return each(&node.here) };
        for child in [node.literals.get(segment).copied(), node.any].into_iter().flatten() {
            self.each(child, rest.clone(), each);
        }
    }
}

impl Trie<Vec<Terminal>> {
    fn insert(&mut self, rule: &Rule, id: RuleId, folded: bool) {
        self.terminal(&rule.pattern, folded).add(rule, id);
    }

    fn insert_own(&mut self, pattern: &Pattern, endpoint: Endpoint, folded: bool) {
        let terminal = self.terminal(pattern, folded);
        terminal.slots = [Some(((u8::MAX, true), Hit::Own(endpoint))); SLOTS];
        terminal.named.clear();
    }

    fn terminal(&mut self, pattern: &Pattern, folded: bool) -> &mut Terminal {
        let list = self.at(pattern, folded);
        let index = list.iter().position(|terminal| terminal.pattern.same_paths(pattern));
        let index = index.unwrap_or_else(|| {
            list.push(Terminal::new(pattern.clone()));
            list.len() - 1
        });
        &mut list[index]
    }

    /// What decides about `method` on `text`: the first terminal list with an answer, most specific
    /// path first. More than one hit only in a folded trie.
    fn find<'a>(&'a self, method: &'a str, text: &'a str) -> impl Iterator<Item = Hit> + 'a {
        let found = self.walk(0, method, segments(text));
        found.unwrap_or(&[]).iter().filter_map(move |terminal| terminal.find(method))
    }

    fn walk<'a>(
        &'a self,
        node: NodeId,
        method: &str,
        mut rest: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<&'a [Terminal]> {
        let node = &self.nodes[node as usize];
        let answers = |list: &'a [Terminal]| list.iter().any(|t| t.find(method).is_some()).then_some(list);
        let Some(segment) = rest.next() else {
            return answers(&node.here).or_else(|| answers(&node.below));
        };
        node.literals
            .get(segment)
            .and_then(|child| self.walk(*child, method, rest.clone()))
            .or_else(|| node.any.and_then(|child| self.walk(child, method, rest)))
            .or_else(|| answers(&node.below))
    }

    /// Marks every rule that decides about some request.
    fn mark_winners(&self, wins: &mut [bool]) {
        for node in &self.nodes {
            for terminal in &node.here {
                terminal.mark(wins, |_| false);
            }
            // What `/*` matches is the node itself and all below: both may be taken in full.
            let below = node.any.map_or(&[][..], |child| &self.nodes[child as usize].below);
            for terminal in &node.below {
                let taken = |list: &[Terminal], slot: usize| list.iter().any(|t| t.slots[slot].is_some());
                terminal.mark(wins, |slot| taken(&node.here, slot) && taken(below, slot));
            }
        }
    }
}
