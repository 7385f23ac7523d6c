//! Which channels must go together: a union of sets of channel labels, some of them held back for a reason.

use std::{collections::HashMap, rc::Rc};

/// One index of one axis of one tensor, or several that are the same channel.
pub(crate) type Label = u32;

/// What is known of an axis of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Its size cannot change.
    Fixed,
    /// The channel of each index.
    Channels(Rc<[Label]>),
}

/// Sets of labels, with the first reason for which a set must stay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ties {
    parents: Vec<Label>,
    /// By root; an index into `reasons`.
    held: HashMap<Label, usize>,
    reasons: Vec<String>,
}

impl Ties {
    /// An axis of `count` channels of its own.
    pub fn axis(&mut self, count: usize) -> Axis {
        // Models of more channels than a label counts do not fit in memory.
        let first = Label::try_from(self.parents.len()).unwrap_or(Label::MAX);
        let labels = (first..).take(count);
        self.parents.extend(labels.clone());
        Axis::Channels(labels.collect())
    }

    /// The label that stands for a set.
    pub fn root(&mut self, label: Label) -> Label {
        let mut at = label;
        while let Some(&parent) = self.parents.get(at as usize) {
            if parent == at {
                break;
            }
            let above = self.parents.get(parent as usize).copied().unwrap_or(parent);
            if let Some(own) = self.parents.get_mut(at as usize) {
                *own = above;
            }
            at = above;
        }
        at
    }

    /// Both are one channel from now on.
    pub fn join(&mut self, a: Label, b: Label) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        if let Some(parent) = self.parents.get_mut(b as usize) {
            *parent = a;
        }
        if let Some(reason) = self.held.remove(&b) {
            self.held.entry(a).or_insert(reason);
        }
    }

    /// The channels of an axis stay.
    pub fn hold(&mut self, axis: &Axis, reason: &str) {
        let Axis::Channels(labels) = axis else { return };
        if self.reasons.last().is_none_or(|last| last != reason) {
            self.reasons.push(reason.to_owned());
        }
        let index = self.reasons.len().saturating_sub(1);
        for &label in labels.iter() {
            let root = self.root(label);
            self.held.entry(root).or_insert(index);
        }
    }

    /// Two axes have the same channels. Where one of them is fixed, or they are of two sizes, both stay.
    pub fn tie(&mut self, a: &Axis, b: &Axis, reason: &str) {
        match (a, b) {
            (Axis::Channels(a), Axis::Channels(b)) if a.len() == b.len() => {
                a.iter().zip(b.iter()).for_each(|(&a, &b)| self.join(a, b));
            }
            _ => {
                self.hold(a, reason);
                self.hold(b, reason);
            }
        }
    }

    /// Why the set of a label must stay; none where it may go.
    pub fn reason(&mut self, label: Label) -> Option<&str> {
        let root = self.root(label);
        self.reasons.get(*self.held.get(&root)?).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_goes_with_the_set() {
        let mut ties = Ties::default();
        let (a, b, c) = (ties.axis(2), ties.axis(2), ties.axis(2));
        ties.hold(&b, "why");
        ties.tie(&a, &b, "");
        assert_eq!(ties.reason(0), Some("why"));
        assert_eq!(ties.reason(4), None);
        ties.tie(&c, &Axis::Fixed, "fixed");
        assert_eq!(ties.reason(5), Some("fixed"));
    }

    #[test]
    fn sizes_that_differ_stay() {
        let mut ties = Ties::default();
        let (a, b) = (ties.axis(2), ties.axis(3));
        ties.tie(&a, &b, "sizes");
        assert_eq!(ties.reason(1), Some("sizes"));
        assert_eq!(ties.reason(4), Some("sizes"));
    }
}
