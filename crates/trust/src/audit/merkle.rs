//! The Merkle tree of RFC 6962 section 2.1 (the same in RFC 9162): hashes, proofs and their verification. No I/O.

use sha2::{Digest as _, Sha256};

use crate::error::{ErrorKind, TrustError};

/// SHA-256.
pub type Hash = [u8; 32];

/// Hash of one entry: `SHA-256(0x00 || entry)`.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// Hash of two subtrees: `SHA-256(0x01 || left || right)`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Hash of the tree without entries: SHA-256 of nothing.
pub fn empty_hash() -> Hash {
    Sha256::digest([]).into()
}

/// The right edge of a growing tree: the roots of its complete subtrees, largest first. Grows without the leaves before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edge {
    size: u64,
    peaks: Vec<Hash>,
}

impl Edge {
    /// The edge of a tree of `size` entries whose complete subtrees `nodes` knows.
    pub fn read(size: u64, nodes: &impl Nodes) -> Result<Self, TrustError> {
        let mut peaks = Vec::new();
        let mut begin = 0;
        for level in (0..64u8).rev().filter(|level| size >> level & 1 == 1) {
            peaks.push(nodes.node(level, begin >> level)?);
            begin += 1 << level;
        }
        Ok(Self { size, peaks })
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the hash of an entry.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Every trailing one of the size is a complete subtree that the new entry completes to a larger one.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Hash of the whole tree.
    pub fn root(&self) -> Hash {
        let folded = self.peaks.iter().rev().copied().reduce(|right, left| node_hash(&left, &right));
        folded.unwrap_or_else(empty_hash)
    }
}

/// Where the hashes of complete subtrees are read.
pub trait Nodes {
    /// Hash of the `index`-th complete subtree of `2^level` entries.
    fn node(&self, level: u8, index: u64) -> Result<Hash, TrustError>;
}

/// Hash of a run of hashes whose number is a power of two.
pub fn fold(hashes: &[Hash]) -> Option<Hash> {
    let mut edge = Edge::default();
    hashes.iter().for_each(|&hash| edge.push(hash));
    hashes.len().is_power_of_two().then(|| edge.root())
}

/// Hash of the entries `begin..end`, where `begin` is a multiple of the largest power of two below `end - begin`.
fn range_hash(begin: u64, end: u64, nodes: &impl Nodes) -> Result<Hash, TrustError> {
    let size = end - begin;
    if size.is_power_of_two() {
        let level = size.trailing_zeros() as u8;
        return nodes.node(level, begin >> level);
    }
    let half = split(size);
    Ok(node_hash(&range_hash(begin, begin + half, nodes)?, &range_hash(begin + half, end, nodes)?))
}

/// The largest power of two smaller than `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// The proof that entry `index` is in the tree of `size` entries: from the leaf's sibling up (RFC 6962 section 2.1.1).
pub fn prove_inclusion(index: u64, size: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, TrustError> {
    if index >= size {
        let text = format!("record `{index}` is not in a log of {size}; expected less than {size}");
        return Err(TrustError::new(ErrorKind::NotFound, text));
    }
    let (mut begin, mut end, mut proof) = (0, size, Vec::new());
    while end - begin > 1 {
        let middle = begin + split(end - begin);
        if index < middle {
            proof.push(range_hash(middle, end, nodes)?);
            end = middle;
        } else {
            proof.push(range_hash(begin, middle, nodes)?);
            begin = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of `old` entries is the beginning of the tree of `new` (RFC 6962 section 2.1.2).
pub fn prove_consistency(old: u64, new: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, TrustError> {
    if old > new {
        let text = format!("a log of {new} records cannot contain its state at `{old}`; expected at most {new}");
        return Err(TrustError::new(ErrorKind::NotFound, text));
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut begin, mut end, mut proof) = (0, new, Vec::new());
    // Down to the subtree that ends where the old tree does; all that hangs off that way is the proof.
    while end != old {
        let middle = begin + split(end - begin);
        if old <= middle {
            proof.push(range_hash(middle, end, nodes)?);
            end = middle;
        } else {
            proof.push(range_hash(begin, middle, nodes)?);
            begin = middle;
        }
    }
    if begin != 0 {
        proof.push(range_hash(begin, end, nodes)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether `proof` shows that the entry with hash `leaf` is number `index` of the tree of `size` with hash `root`
/// (RFC 9162 section 2.1.3.2).
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut fringe, mut last, mut hash) = (index, size - 1, leaf);
    for step in proof {
        if last == 0 {
            return false;
        }
        if fringe & 1 == 1 || fringe == last {
            hash = node_hash(step, &hash);
            while fringe & 1 == 0 && fringe != 0 {
                fringe >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, step);
        }
        fringe >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// A tree: how many entries, and their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// Hash of the tree.
    pub root: Hash,
}

/// Whether `proof` shows that the tree `old` is the beginning of the tree `new` (RFC 9162 section 2.1.4.2).
pub fn verify_consistency(old: &Head, new: &Head, proof: &[Hash]) -> bool {
    if old.size == 0 {
        return proof.is_empty() && old.root == empty_hash();
    }
    if old.size >= new.size {
        return proof.is_empty() && old == new;
    }
    // Where the old tree is complete, its own hash begins the proof and is left out of it.
    let (first, rest) = match proof.split_first() {
        _ if old.size.is_power_of_two() => (&old.root, proof),
        Some(parts) => parts,
        None => return false,
    };
    let (mut fringe, mut last) = (old.size - 1, new.size - 1);
    let ones = fringe.trailing_ones();
    (fringe, last) = (fringe >> ones, last >> ones);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for step in rest {
        if last == 0 {
            return false;
        }
        if fringe & 1 == 1 || fringe == last {
            old_hash = node_hash(step, &old_hash);
            new_hash = node_hash(step, &new_hash);
            while fringe & 1 == 0 && fringe != 0 {
                fringe >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, step);
        }
        fringe >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == old.root && new_hash == new.root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 6962, word by word.
    fn reference(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_hash(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&reference(left), &reference(right))
            }
        }
    }

    struct Leaves(Vec<Hash>);

    impl Nodes for Leaves {
        fn node(&self, level: u8, index: u64) -> Result<Hash, TrustError> {
            let begin = (index << level) as usize;
            Ok(fold(&self.0[begin..begin + (1 << level)]).unwrap())
        }
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    fn hex(hash: &Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The vectors of the Certificate Transparency project (`merkletree/merkle_tree_test.cc`), kept by all CT logs since.
    #[test]
    fn hashes_are_those_of_certificate_transparency() {
        let inputs: [&[u8]; 8] = [
            &[],
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut edge = Edge::default();
        assert_eq!(hex(&edge.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (input, root) in inputs.iter().zip(roots) {
            edge.push(leaf_hash(input));
            assert_eq!(hex(&edge.root()), root, "{} entries", edge.size());
        }
    }

    #[test]
    fn the_edge_has_the_root_of_the_definition() {
        let all = leaves(70);
        let mut edge = Edge::default();
        for size in 0..=70 {
            assert_eq!(edge.root(), reference(&all[..size]), "{size}");
            assert_eq!(Edge::read(size as u64, &Leaves(all.clone())).unwrap(), edge, "{size}");
            all.get(size).into_iter().for_each(|&leaf| edge.push(leaf));
        }
    }

    #[test]
    fn every_inclusion_is_proved_and_no_other() {
        let all = leaves(40);
        let nodes = Leaves(all.clone());
        for size in 1..=40u64 {
            let root = reference(&all[..size as usize]);
            for index in 0..size {
                let proof = prove_inclusion(index, size, &nodes).unwrap();
                let leaf = all[index as usize];
                assert!(verify_inclusion(leaf, index, size, &root, &proof), "{index} of {size}");
                assert!(!verify_inclusion(leaf, index + 1, size, &root, &proof), "{index} of {size}");
                assert!(!verify_inclusion([7; 32], index, size, &root, &proof), "{index} of {size}");
                let longer = [proof.as_slice(), &[[0; 32]]].concat();
                assert!(!verify_inclusion(leaf, index, size, &root, &longer), "{index} of {size}");
                assert!(proof.is_empty() || !verify_inclusion(leaf, index, size, &root, &proof[1..]));
            }
            assert!(prove_inclusion(size, size, &nodes).is_err());
        }
    }

    #[test]
    fn every_consistency_is_proved_and_no_other() {
        let all = leaves(40);
        let nodes = Leaves(all.clone());
        let head = |size: u64| Head { size, root: reference(&all[..size as usize]) };
        for new in 0..=40u64 {
            for old in 0..=new {
                let proof = prove_consistency(old, new, &nodes).unwrap();
                assert!(verify_consistency(&head(old), &head(new), &proof), "{old} in {new}");
                let other = Head { root: [7; 32], ..head(old) };
                assert!(!verify_consistency(&other, &head(new), &proof), "{old} in {new}");
                let longer = [proof.as_slice(), &[[0; 32]]].concat();
                assert!(!verify_consistency(&head(old), &head(new), &longer), "{old} in {new}");
                for cut in 0..proof.len() {
                    assert!(!verify_consistency(&head(old), &head(new), &proof[..cut]), "{old} in {new}");
                }
            }
            assert!(prove_consistency(new + 1, new, &nodes).is_err());
        }
    }
}
