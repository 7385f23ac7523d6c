//! All that each entity is in, directly or not, by places in a list. Nothing here recurses: a list may be a chain of any length.

use std::collections::BTreeSet;

/// Most others that an entity is in.
pub(super) const EACH_MAX: usize = 1000;
/// Most others that all entities are in, each counted by itself; they take 200 MB.
pub(super) const ALL_MAX: usize = 50_000_000;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Each is in the next, and the last in the first.
    Circle(Vec<u32>),
    /// One is in more than [`EACH_MAX`].
    TooMany(u32),
    /// All together are in more than [`ALL_MAX`].
    TooManyInAll,
}

/// Ancestors of each, ascending, from its parents.
///
/// # Errors
/// A circle, or more ancestors than are kept.
pub(super) fn ancestors(parents: &[Vec<u32>]) -> Result<Vec<Box<[u32]>>, Wrong> {
    let mut known: Vec<Option<Box<[u32]>>> = vec![None; parents.len()];
    let mut all = 0;
    // The way from where a walk began to where it is, each with how many of its parents were looked at.
    let mut way: Vec<(u32, usize)> = Vec::new();
    let mut on_way = vec![false; parents.len()];
    for start in 0..parents.len() {
        if matches!(known.get(start), Some(None)) {
            way.push((start as u32, 0));
        }
        while let Some((place, looked)) = way.last_mut() {
            let here = *place as usize;
            if let Some(on_way) = on_way.get_mut(here) {
                *on_way = true;
            }
            let next = parents.get(here).and_then(|parents| parents.get(*looked)).copied();
            *looked += 1;
            match next {
                Some(parent) if matches!(known.get(parent as usize), Some(None)) => {
                    if on_way.get(parent as usize) == Some(&true) {
                        let circle = way.iter().map(|(place, _)| *place).skip_while(|place| *place != parent);
                        return Err(Wrong::Circle(circle.collect()));
                    }
                    way.push((parent, 0));
                }
                Some(_) => {}
                None => {
                    let found = union(here, parents, &known)?;
                    all += found.len();
                    if all > ALL_MAX {
                        return Err(Wrong::TooManyInAll);
                    }
                    if let (Some(known), Some(on_way)) = (known.get_mut(here), on_way.get_mut(here)) {
                        (*known, *on_way) = (Some(found), false);
                    }
                    way.pop();
                }
            }
        }
    }
    Ok(known.into_iter().map(Option::unwrap_or_default).collect())
}

/// The parents of one and all that they are in, which is known.
fn union(here: usize, parents: &[Vec<u32>], known: &[Option<Box<[u32]>>]) -> Result<Box<[u32]>, Wrong> {
    let mut found = BTreeSet::new();
    for &parent in parents.get(here).into_iter().flatten() {
        found.insert(parent);
        found.extend(known.get(parent as usize).into_iter().flatten().flatten().copied());
        if found.len() > EACH_MAX {
            return Err(Wrong::TooMany(here as u32));
        }
    }
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn circles_and_long_chains_are_found() {
        assert_eq!(ancestors(&[vec![1], vec![2], vec![1]]), Err(Wrong::Circle(vec![1, 2])));
        assert_eq!(ancestors(&[vec![0]]), Err(Wrong::Circle(vec![0])));
        let chain: Vec<Vec<u32>> = (1..200_000).map(|next| vec![next]).chain([vec![]]).collect();
        assert_eq!(ancestors(&chain), Err(Wrong::TooMany((chain.len() - EACH_MAX - 2) as u32)));
    }

    proptest! {
        /// Against walking from each by itself.
        #[test]
        fn all_are_found(edges in proptest::collection::vec((0u32..30, 0u32..30), 0..80)) {
            let mut parents = vec![Vec::new(); 30];
            for (a, b) in edges {
                // Only from the lower to the higher: no circles.
                if a != b {
                    parents[a.min(b) as usize].push(a.max(b));
                }
            }
            let found = ancestors(&parents).unwrap();
            for (start, found) in found.iter().enumerate() {
                let (mut reached, mut left) = (BTreeSet::new(), parents[start].clone());
                while let Some(place) = left.pop() {
                    if reached.insert(place) {
                        left.extend(&parents[place as usize]);
                    }
                }
                prop_assert_eq!(found.to_vec(), reached.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
