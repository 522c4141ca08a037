//! Whether the nodes behind the listed addresses are of this node's cluster, as far as they have answered. A value: no IO, no
//! clock.
//!
//! A data folder of another cluster, or a wrong list of peers, must not be served. One wrong node must not keep the others
//! from serving either, so what counts is the majority of the list, this node included:
//!
//! ```text
//! known to be ours    >= majority   sound: for as long as the process lives, whatever is heard later
//! not known as foreign <  majority   foreign: this node is the one that is wrong
//! neither                           open: who has not answered yet decides
//! ```
//!
//! No two nodes of different clusters are both sound by the answers of the same list, and the one that is wrong learns it
//! from the others however they start: it goes on asking who has not answered, also while it runs.

use std::collections::BTreeMap;

/// A listed peer that belongs to another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Where it answers.
    pub addr: String,
    /// Its cluster.
    pub cluster: String,
}

/// What the answers so far mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// More answers are needed. With strangers among them, nothing is served meanwhile.
    Open,
    /// This node is where it belongs.
    Sound,
    /// Too few are left that could be of this node's cluster; one of the strangers.
    Foreign(Stranger),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Company {
    listed: Vec<String>,
    /// Cluster of those that have answered; none for this node itself.
    heard: BTreeMap<String, Option<String>>,
    sound: bool,
}

impl Company {
    /// Nobody of the list has answered yet.
    pub(crate) fn new(listed: &[String]) -> Self {
        Self { listed: listed.to_vec(), heard: BTreeMap::new(), sound: false }
    }

    /// This node has met itself behind an address.
    pub(crate) fn note_self(&mut self, addr: &str) {
        self.heard.insert(addr.to_owned(), None);
    }

    /// A node has said which cluster it belongs to. Whoever is not listed does not count.
    pub(crate) fn note(&mut self, addr: &str, cluster: &str) {
        if self.listed.iter().any(|listed| listed == addr) {
            self.heard.insert(addr.to_owned(), Some(cluster.to_owned()));
        }
    }

    /// Listed addresses behind which nobody of `cluster` has answered, in order.
    pub(crate) fn to_ask(&self, cluster: &str) -> Vec<String> {
        let open = |addr: &&String| match self.heard.get(*addr) {
            None => true,
            Some(theirs) => theirs.as_ref().is_some_and(|theirs| theirs != cluster),
        };
        self.listed.iter().filter(open).cloned().collect()
    }

    /// Those of another cluster than `cluster`, by address.
    pub(crate) fn strangers(&self, cluster: &str) -> Vec<Stranger> {
        let heard = self.heard.iter().filter_map(|(addr, theirs)| Some((addr, theirs.as_ref()?)));
        let foreign = heard.filter(|(_, theirs)| *theirs != cluster);
        foreign.map(|(addr, theirs)| Stranger { addr: addr.clone(), cluster: theirs.clone() }).collect()
    }

    /// What the answers mean for a node of `cluster`.
    pub(crate) fn verdict(&mut self, cluster: &str) -> Verdict {
        let majority = self.listed.len() / 2 + 1;
        let others_of_ours = self.heard.values().flatten().filter(|theirs| *theirs == cluster).count();
        self.sound |= 1 + others_of_ours >= majority;
        if self.sound {
            return Verdict::Sound;
        }
        let strangers = self.strangers(cluster);
        let possible = self.listed.len() - strangers.len();
        match strangers.into_iter().next() {
            Some(stranger) if possible < majority => Verdict::Foreign(stranger),
            Some(_) | None => Verdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["a:1", "b:1", "c:1", "d:1", "e:1"];

    fn company(nodes: usize) -> Company {
        let listed: Vec<String> = NAMES[..nodes].iter().map(|addr| (*addr).to_owned()).collect();
        let mut company = Company::new(&listed);
        company.note_self(NAMES[0]);
        company
    }

    #[test]
    fn one_stranger_keeps_nobody_from_serving_and_a_majority_of_them_ends_the_node() {
        let mut company = company(3);
        assert_eq!(company.verdict("ours"), Verdict::Open);
        company.note("b:1", "theirs");
        assert_eq!(company.verdict("ours"), Verdict::Open);
        assert_eq!(company.to_ask("ours"), ["b:1", "c:1"]);
        company.note("nowhere:1", "theirs");
        assert_eq!(company.verdict("ours"), Verdict::Open, "whoever is not listed does not count");
        company.note("c:1", "theirs");
        let first = Stranger { addr: "b:1".into(), cluster: "theirs".into() };
        assert_eq!(company.verdict("ours"), Verdict::Foreign(first.clone()));
        // The right folder has been put in its place.
        company.note("c:1", "ours");
        assert_eq!(company.verdict("ours"), Verdict::Sound);
        assert_eq!(company.strangers("ours"), [first]);
        company.note("c:1", "theirs");
        assert_eq!(company.verdict("ours"), Verdict::Sound, "what serves is not ended from outside");
        assert_eq!(company.strangers("ours").len(), 2);
    }

    /// Every way in which the other nodes of a list can have answered: nothing, this cluster, or another.
    #[test]
    fn what_counts_is_the_majority_of_the_list_in_whatever_order_it_answers() {
        for nodes in 1..=5 {
            for answers in 0..3_usize.pow(nodes as u32 - 1) {
                let mut heard = company(nodes);
                let (mut ours, mut theirs) = (1, 0);
                for (n, addr) in NAMES[1..nodes].iter().enumerate() {
                    match answers / 3_usize.pow(n as u32) % 3 {
                        0 => {}
                        1 => {
                            heard.note(addr, "ours");
                            ours += 1;
                        }
                        _ => {
                            heard.note(addr, "theirs");
                            theirs += 1;
                        }
                    }
                }
                let verdict = heard.verdict("ours");
                // More than half, counted apart from the code above.
                assert_eq!(verdict == Verdict::Sound, 2 * ours > nodes, "{nodes} {heard:?}");
                let no_majority_left = 2 * (nodes - theirs) <= nodes;
                assert_eq!(matches!(verdict, Verdict::Foreign(_)), no_majority_left, "{nodes} {heard:?}");
            }
        }
    }

    #[test]
    fn a_node_that_is_not_listed_counts_none_of_the_list_as_itself() {
        let mut company = Company::new(&["b:1".into(), "c:1".into()]);
        company.note("b:1", "theirs");
        assert!(matches!(company.verdict("ours"), Verdict::Foreign(_)));
    }
}
