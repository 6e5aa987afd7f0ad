//! Whether it pays to ask what the receiver has of blocks that differ, which follows from what
//! the link takes for a byte and what hashing costs; and of blocks that are new, which follows from
//! how many of them it had. Pure.

use crate::protocol::LinkSpeed;

/// Bytes that differ at the start of a file and are sent without a question: no more than the
/// largest block. Where answers are quick that is all, so that a dry run can tell what will
/// travel.
const UNASKED: u64 = 256 << 10;
/// An answer that takes longer, in seconds, is not waited for at the end of a file, as far as
/// the link carries what is left sooner.
const SLOW: f64 = 20e-3;
/// What a byte costs on the fastest link that there is, in seconds: ssh encrypts it
/// and decrypts it.
const FASTEST: f64 = 2e-9;

/// Whether it pays to ask what the receiver has of blocks that differ: a question
/// costs hashing at both ends, at the same time, and saves bytes.
pub struct LeafPolicy {
    /// All that differs is asked about.
    always: bool,
    /// Of what was asked about, how much did not have to travel lately: 0 to 1.
    saved: f64,
    /// What hashing leaves costs, in seconds of a processor a byte.
    cost: f64,
    /// How long the quickest answer took, in seconds, if one has come.
    delay: Option<f64>,
    /// Bytes of this file that differ and were sent before the first question.
    unasked: u64,
    /// There was a question about this file: the wait for an answer is worth it.
    begun: bool,
    /// Decisions since the last question.
    idle: u32,
    /// Of new blocks that were asked about, how many the receiver had lately: 0 to 1.
    news: f64,
    /// Decisions about new blocks since the last question.
    idle_news: u32,
}

impl LeafPolicy {
    /// Every so often it is tried whether it pays again.
    const TRY_AGAIN: u32 = 8;
    /// The same of new blocks, where this of them at most is found.
    const TRY_NEWS_AGAIN: u32 = 64;
    const RARE: f64 = 1.0 / 32.0;
    /// What the last answer counts for in what was seen lately.
    const WEIGHT: f64 = 1.0 / 16.0;

    /// `always`: the user named what the receiver may have blocks from, so that bytes count, and a
    /// dry run can tell them.
    pub fn new(always: bool) -> LeafPolicy {
        LeafPolicy {
            always,
            saved: 1.0,
            cost: 0.0,
            delay: None,
            unasked: 0,
            begun: false,
            idle: 0,
            news: 1.0,
            idle_news: 0,
        }
    }

    /// A new file begins.
    pub fn begin(&mut self) {
        (self.unasked, self.begun) = (0, false);
    }

    /// Whether to ask about the next blocks that differ, `bytes` of data. `rest`: about how
    /// much follows in this file.
    pub fn pays_off(&mut self, bytes: u64, rest: u64, link: &LinkSpeed) -> bool {
        if self.always {
            return true;
        }
        let seen = link.seconds_per_byte();
        let per_byte = seen.unwrap_or(FASTEST).max(FASTEST);
        // The first blocks of a file are sent sooner than an answer comes, and the last
        // ones while the last answer is on its way.
        let few = self.unasked + bytes <= UNASKED;
        let slow = self.delay.filter(|delay| *delay >= SLOW && seen.is_some());
        let late = slow.is_some_and(|delay| rest as f64 * per_byte < delay);
        if few && !self.begun || late {
            self.unasked += bytes;
            return false;
        }
        self.begun = true;
        self.idle += 1;
        let pays_off = self.saved * per_byte > self.cost || self.idle >= LeafPolicy::TRY_AGAIN;
        if pays_off {
            self.idle = 0;
        }
        pays_off
    }

    /// Whether to ask about the next blocks that are new.
    pub fn finds_new(&mut self) -> bool {
        self.idle_news += 1;
        let asks = self.news > LeafPolicy::RARE || self.idle_news >= LeafPolicy::TRY_NEWS_AGAIN;
        if asks {
            self.idle_news = 0;
        }
        asks
    }

    /// A block was found where it was asked about, after so many seconds: nothing of it has to
    /// travel.
    pub fn found(&mut self, bytes: usize, seconds: f64) {
        self.answered_after(seconds);
        self.learn(bytes, 0, 0.0);
        self.news += (1.0 - self.news) * LeafPolicy::WEIGHT;
    }

    /// A new block was not found.
    pub fn not_found(&mut self) {
        self.news -= self.news * LeafPolicy::WEIGHT;
    }

    /// Learns how long an answer took.
    pub fn answered_after(&mut self, seconds: f64) {
        self.delay = Some(self.delay.map_or(seconds, |delay| delay.min(seconds)));
    }

    /// Learns from an answer for a block.
    pub fn learn(&mut self, bytes: usize, sent: u64, seconds: f64) {
        let bytes = bytes.max(1) as f64;
        self.saved += (1.0 - sent as f64 / bytes - self.saved) * LeafPolicy::WEIGHT;
        self.cost += (seconds / bytes - self.cost) * LeafPolicy::WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 64 << 10;

    /// After the first blocks of a file, and some answers that saved most of a block.
    fn policy(seconds_per_byte: f64) -> LeafPolicy {
        let mut policy = LeafPolicy { unasked: 1 << 20, ..LeafPolicy::new(false) };
        (0..50).for_each(|_| policy.learn(BLOCK, 4096, seconds_per_byte * BLOCK as f64));
        policy
    }

    /// How many of these decisions were for asking.
    fn asked(policy: &mut LeafPolicy, decisions: usize) -> usize {
        (0..decisions).filter(|_| policy.pays_off(BLOCK as u64, 1 << 30, &LinkSpeed::default())).count()
    }

    #[test]
    fn the_first_blocks_of_a_file_are_not_asked_about() {
        let mut policy = LeafPolicy::new(false);
        assert_eq!(asked(&mut policy, 4), 0);
        assert_eq!(asked(&mut policy, 15), 15);
        // Nor does a slow answer stop what has begun; the next file is another matter.
        policy.answered_after(0.02);
        assert_eq!(asked(&mut policy, 15), 15);
        policy.begin();
        assert_eq!(asked(&mut policy, 4), 0);
    }

    #[test]
    fn the_last_blocks_of_a_file_wait_for_no_answer_that_is_slow() {
        let mut policy = policy(0.5e-9);
        let mut link = LinkSpeed::default();
        link.record(64 << 20, std::time::Duration::from_millis(64 * 10));
        policy.answered_after(25e-3);
        assert!(policy.pays_off(BLOCK as u64, 3 << 20, &link));
        assert!(!policy.pays_off(BLOCK as u64, 2 << 20, &link));
        policy.answered_after(2e-3);
        assert!(policy.pays_off(BLOCK as u64, 0, &link));
    }

    #[test]
    fn where_bytes_count_all_is_asked_about() {
        let mut always = LeafPolicy { always: true, ..policy(3e-9) };
        assert_eq!(asked(&mut always, 16), 16);
        always.begin();
        assert!(always.pays_off(1, 0, &LinkSpeed::default()));
    }

    #[test]
    fn new_blocks_that_are_not_found_are_soon_only_tried() {
        let mut policy = LeafPolicy::new(false);
        let ask = |policy: &mut LeafPolicy, times: usize| (0..times).filter(|_| policy.finds_new()).count();
        assert_eq!(ask(&mut policy, 100), 100);
        (0..100).for_each(|_| policy.not_found());
        assert_eq!(ask(&mut policy, 640), 10);
        (0..10).for_each(|_| policy.found(BLOCK, 1e-3));
        assert_eq!(ask(&mut policy, 100), 100);
    }

    #[test]
    fn where_hashing_costs_more_than_it_saves_it_is_only_tried() {
        assert_eq!(asked(&mut policy(3e-9), 16), 2);
        let mut useless = policy(0.5e-9);
        (0..50).for_each(|_| useless.learn(BLOCK, BLOCK as u64, 0.5e-9 * BLOCK as f64));
        assert_eq!(asked(&mut useless, 16), 2);
    }
}
