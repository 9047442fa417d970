//! The decision: what a request must bring, and whether this caller brings it.
//!
//! Pure: no socket, file, clock, log or global. A [`Policy`] is compiled from the rules of one
//! configuration and never changes. `serve`, `explain`, `check` and the reload's comparison all ask
//! the same object, so they cannot disagree.
//!
//! A [`Target`] is everything that a request says about what it is for, in every way that an upstream
//! could read it (`reading`). [`Policy::judge`] asks the rules about each and keeps the strictest
//! answer; [`Policy::decide`] holds that against the caller. No rule, no reading, no role: refused.

pub mod diff;
pub mod method;
pub mod path;
pub mod pattern;
pub mod query;
pub mod reading;
pub mod role;
pub mod rules;

use std::fmt;

use path::PathError;
pub use pattern::Pattern;
pub use reading::{PathOptions, Target};
pub use role::{Role, Roles};
pub use rules::{Endpoint, Mode, Rule, RuleId, RuleProblem};
use rules::{Hit, Rules};

/// What a request must bring. The variants stand in order of strictness, so "the strictest
/// reading wins" is `max`, and no reading at all is a refusal.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Requirement {
    /// Nothing.
    Public,
    /// Any valid token.
    Authenticated,
    /// A valid token of this role or a higher one.
    AtLeast(Role),
    /// Nothing is enough.
    Deny,
}

/// Who asks, as far as a decision needs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller<'a> {
    /// Without a valid token.
    Anonymous,
    /// With one; the role's name if the token carries any. It need not be a configured role.
    Authenticated(Option<&'a str>),
}

/// The proof that a decision was made and allows the request. Made by [`Policy::decide`] alone.
#[derive(Debug)]
pub struct Permit(());

/// Why a request is not allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// A valid token would be needed to know more: 401.
    Anonymous,
    /// The role is too low or unknown, or nothing is enough: 403.
    Role,
}

/// What the rules say about one target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Judgement {
    /// Where the request goes if it is allowed.
    pub route: Route,
    /// What rules on trial would have asked for instead, where they would have changed anything.
    pub on_trial: Option<(Requirement, RuleId)>,
    /// Whether removing the headers that name a method changes what the request must bring.
    pub override_matters: bool,
    /// Whether a CORS preflight for it can mean nothing else: nothing names another method, and no
    /// reading is one of the gateway's own paths.
    pub plain_preflight: bool,
    /// Whether an upstream may take it for a request to change something: the method on the request line,
    /// or one that a header or parameter names, is not a safe one.
    pub is_unsafe: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// To the gateway itself.
    Own(Endpoint),
    /// To the upstream, if the requirement is met.
    Upstream {
        /// The strictest among all readings.
        requirement: Requirement,
        /// The rule that asks for it; `None` where no rule allows the request.
        rule: Option<RuleId>,
    },
}

/// One reading of a target and what it requires: a line of `portcullis explain`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reading {
    /// The method that this reading takes.
    pub method: String,
    /// The path that this reading takes.
    pub path: String,
    /// Whether literals were compared without regard to letter case.
    pub case_folded: bool,
    /// What it requires.
    pub requirement: Requirement,
    /// What says so.
    pub because: Because,
}

/// What a reading's requirement comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Because {
    /// The most specific path rule.
    Rule(RuleId),
    /// A rule with `query`.
    QueryRule(RuleId),
    /// No rule covers it.
    NoRule,
    /// It is a path of the gateway's own.
    Own(Endpoint),
}

/// The answer to one caller, as `expect` cases and `explain` word it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Answer {
    /// Forwarded.
    Allowed,
    /// Refused before any rule was asked.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// Answered by the gateway itself.
    Own,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::BadRequest => "400",
            Self::Unauthorized => "401",
            Self::Forbidden => "403",
            Self::Own => "answered by the gateway",
        })
    }
}

/// The compiled rules of one configuration.
#[derive(Debug)]
pub struct Policy {
    roles: Roles,
    options: PathOptions,
    list: Vec<Rule>,
    enforced: Rules,
    /// The rules as if those on trial were in force; `None` without any.
    on_trial: Option<Rules>,
}

impl Policy {
    /// Compiles `list`, whose order is that of the file. `own` are the paths that the gateway answers
    /// itself; they come before every rule.
    ///
    /// Returns the policy and what is wrong with the rules, in file order; with an error among them
    /// (`RuleProblem::is_error`) the policy must not be used.
    pub fn new(
        roles: Roles,
        list: Vec<Rule>,
        own: &[(Pattern, Endpoint)],
        options: PathOptions,
    ) -> (Self, Vec<RuleProblem>) {
        let problems = rules::problems(&list, own);
        let enforced = Rules::new(&list, own, |rule| rule.mode == Mode::Enforce);
        let tries = list.iter().any(|rule| rule.mode == Mode::Report);
        let on_trial = tries.then(|| Rules::new(&list, own, |_| true));
        (Self { roles, options, list, enforced, on_trial }, problems)
    }

    /// The configured roles.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// The rules, in file order.
    pub fn rules(&self) -> &[Rule] {
        &self.list
    }

    /// How paths are read.
    pub fn options(&self) -> &PathOptions {
        &self.options
    }

    /// Reads a request for this policy. See [`Target::parse`].
    ///
    /// # Errors
    /// [`PathError`] for a path that no rule is asked about.
    pub fn target<'a, 'v>(
        &self,
        method: &'a str,
        path: &'a str,
        query: Option<&str>,
        overrides: impl IntoIterator<Item = &'v str>,
    ) -> Result<Target<'a>, PathError> {
        // The query is taken apart only where something looks at it.
        let query = query.filter(|query| self.reads_query() || may_name_method(query));
        Target::parse(method, path, query, overrides, &self.options)
    }

    /// What `target` must bring: the strictest requirement among all its readings.
    pub fn judge(&self, target: &Target<'_>) -> Judgement {
        let mut strictest: Option<(Requirement, Because)> = None;
        let mut own = false;
        self.each_reading(&self.enforced, target, target.methods(), |_, _, _, requirement, because| {
            own |= matches!(because, Because::Own(_));
            if strictest.is_none_or(|(known, _)| requirement > known) {
                strictest = Some((requirement, because));
            }
        });
        let (requirement, because) = strictest.unwrap_or((Requirement::Deny, Because::NoRule));
        let route = match because {
            // Only the plain reading reaches the gateway's own endpoint; any other reading of it is denied.
            Because::Own(endpoint) if self.is_plainly_own(target) => Route::Own(endpoint),
            Because::Own(_) | Because::NoRule => Route::Upstream { requirement, rule: None },
            Because::Rule(rule) | Because::QueryRule(rule) => {
                Route::Upstream { requirement, rule: Some(rule) }
            }
        };
        let on_trial = self.on_trial.as_ref().and_then(|rules| self.trial(rules, target, requirement));
        let overridden = target.methods().nth(1).is_some();
        let override_matters =
            overridden && requirement != self.strictest(&self.enforced, target, target.without_overrides());
        let is_unsafe = !target.methods().all(method::is_safe);
        Judgement { route, on_trial, override_matters, plain_preflight: !overridden && !own, is_unsafe }
    }

    /// Holds what is `needed` against who asks.
    ///
    /// # Errors
    /// [`Denied`]; an anonymous caller is never told more than that a token is needed.
    pub fn decide(&self, needed: Requirement, caller: Caller<'_>) -> Result<Permit, Denied> {
        match (needed, caller) {
            (Requirement::Public, _) | (Requirement::Authenticated, Caller::Authenticated(_)) => {
                Ok(Permit(()))
            }
            (_, Caller::Anonymous) => Err(Denied::Anonymous),
            (Requirement::AtLeast(least), Caller::Authenticated(role)) => {
                match role.and_then(|name| self.roles.find(name)) {
                    Some(role) if role >= least => Ok(Permit(())),
                    _ => Err(Denied::Role),
                }
            }
            (Requirement::Deny, Caller::Authenticated(_)) => Err(Denied::Role),
        }
    }

    /// What `caller` would be answered: judge and decide in one, for `expect` and `explain`.
    pub fn answer(&self, method: &str, path: &str, query: Option<&str>, caller: Caller<'_>) -> Answer {
        let Ok(target) = self.target(method, path, query, []) else { return Answer::BadRequest };
        self.answer_target(&target, caller)
    }

    /// As [`Policy::answer`], for a target that is already read.
    pub fn answer_target(&self, target: &Target<'_>, caller: Caller<'_>) -> Answer {
        match self.judge(target).route {
            Route::Own(_) => Answer::Own,
            Route::Upstream { requirement, .. } => match self.decide(requirement, caller) {
                Ok(_) => Answer::Allowed,
                Err(Denied::Anonymous) => Answer::Unauthorized,
                Err(Denied::Role) => Answer::Forbidden,
            },
        }
    }

    /// Every reading of `target`, as `judge` goes through them.
    pub fn explain(&self, target: &Target<'_>) -> Vec<Reading> {
        let mut readings = Vec::new();
        self.each_reading(
            &self.enforced,
            target,
            target.methods(),
            |method, path, folded, requirement, because| {
                let reading = Reading {
                    method: method.to_owned(),
                    path: path.replace(path::ENCODED_SLASH, "%2F"),
                    case_folded: folded,
                    requirement,
                    because,
                };
                if !readings.contains(&reading) {
                    readings.push(reading);
                }
            },
        );
        readings
    }

    /// The words of a requirement, as `allow` would write it.
    pub fn wording(&self, requirement: Requirement) -> &str {
        match requirement {
            Requirement::Public => "public",
            Requirement::Authenticated => "authenticated",
            Requirement::AtLeast(role) => self.roles.name(role),
            Requirement::Deny => "deny",
        }
    }

    fn reads_query(&self) -> bool {
        self.enforced.reads_query() || self.on_trial.as_ref().is_some_and(Rules::reads_query)
    }

    /// Calls `each(method, path, case folded, requirement, because)` for every reading.
    fn each_reading<'t>(
        &self,
        rules: &Rules,
        target: &'t Target<'_>,
        methods: impl Iterator<Item = &'t str> + Clone,
        mut each: impl FnMut(&str, &str, bool, Requirement, Because),
    ) {
        let because = |hit| match hit {
            Hit::Rule(id) => (self.list[id.index()].allow, Because::Rule(id)),
            Hit::Own(endpoint) => (Requirement::Deny, Because::Own(endpoint)),
        };
        let fold_case = target.path().is_cased() || rules.is_cased();
        for text in target.texts() {
            // One copy a text, and none where letter case cannot matter.
            let folded = fold_case.then(|| pattern::fold(text));
            for method in methods.clone() {
                let (requirement, why) =
                    rules.find(method, text).map_or((Requirement::Deny, Because::NoRule), because);
                each(method, text, false, requirement, why);
                if let Some(folded) = &folded {
                    for hit in rules.find_folded(method, folded) {
                        let (requirement, why) = because(hit);
                        each(method, folded, true, requirement, why);
                    }
                }
            }
            self.each_by_query(rules, target, text, methods.clone(), &mut each);
        }
        for text in target.unaccented_texts() {
            let folded = pattern::fold(text);
            for method in methods.clone() {
                let mut hits = rules.find_folded(method, &folded).peekable();
                if hits.peek().is_none() {
                    each(method, &folded, true, Requirement::Deny, Because::NoRule);
                }
                for hit in hits {
                    let (requirement, why) = because(hit);
                    each(method, &folded, true, requirement, why);
                }
            }
            self.each_by_query(rules, target, text, methods.clone(), &mut each);
        }
    }

    /// The part of [`Policy::each_reading`] that the query decides.
    fn each_by_query<'t>(
        &self,
        rules: &Rules,
        target: &Target<'_>,
        text: &str,
        methods: impl Iterator<Item = &'t str> + Clone,
        each: &mut impl FnMut(&str, &str, bool, Requirement, Because),
    ) {
        let Some(query) = target.query() else { return };
        rules.each_by_query(&self.list, text, query, |id| {
            let rule = &self.list[id.index()];
            for method in methods.clone().filter(|method| rule.methods.covers(method)) {
                each(method, text, false, rule.allow, Because::QueryRule(id));
            }
        });
    }

    fn strictest<'t>(
        &self,
        rules: &Rules,
        target: &'t Target<'_>,
        methods: impl Iterator<Item = &'t str> + Clone,
    ) -> Requirement {
        let mut strictest = None;
        self.each_reading(rules, target, methods, |_, _, _, requirement, _| {
            strictest = strictest.max(Some(requirement));
        });
        strictest.unwrap_or(Requirement::Deny)
    }

    fn trial(
        &self,
        rules: &Rules,
        target: &Target<'_>,
        enforced: Requirement,
    ) -> Option<(Requirement, RuleId)> {
        let mut strictest: Option<(Requirement, Because)> = None;
        self.each_reading(rules, target, target.methods(), |_, _, _, requirement, because| {
            if strictest.is_none_or(|(known, _)| requirement > known) {
                strictest = Some((requirement, because));
            }
        });
        match strictest? {
            (requirement, Because::Rule(id) | Because::QueryRule(id))
                if requirement != enforced && self.list[id.index()].mode == Mode::Report =>
            {
                Some((requirement, id))
            }
            _ => None,
        }
    }

    /// Whether the path as decoded once, compared exactly, is the endpoint's.
    fn is_plainly_own(&self, target: &Target<'_>) -> bool {
        matches!(self.enforced.find(target.method(), target.path().as_str()), Some(Hit::Own(_)))
    }
}

/// Whether a query could hold `_method`, in whatever spelling. Cheap, and wrong only towards yes.
fn may_name_method(query: &str) -> bool {
    query.contains('%') || query.as_bytes().windows(6).any(|window| window.eq_ignore_ascii_case(b"method"))
}

#[cfg(test)]
mod tests;
