//! Entries that are done side by side are told of in the order in which they were found.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::error::lock;
use crate::report::item::KeptItem;
use crate::report::{Changes, Event, Item, Outcome, Reporter, Summary};

/// Entries that wait for one before them, at most: then it is not waited for.
const MOST: usize = 1024;

/// Holds back what is told of entries until those before them are told of.
pub struct InOrder {
    state: Mutex<Waiting>,
    shown: Box<dyn Reporter>,
}

#[derive(Default)]
struct Waiting {
    /// All entries before this one are told of, or not waited for.
    next: u64,
    held: BTreeMap<u64, Told>,
}

/// An entry, and what became of it; without an outcome it is no file.
struct Told {
    item: KeptItem,
    outcome: Option<Outcome>,
    changes: Changes,
}

impl InOrder {
    /// Passes everything on to `shown`.
    pub fn new(shown: Box<dyn Reporter>) -> InOrder {
        InOrder { state: Mutex::default(), shown }
    }

    fn entry(&self, item: Item, outcome: Option<Outcome>, changes: Changes) {
        let mut waiting = lock(&self.state);
        let Some(order) = item.order.filter(|&order| order > waiting.next) else {
            tell(&*self.shown, item, outcome, changes);
            if item.order == Some(waiting.next) {
                waiting.next += 1;
            }
            return waiting.go_on(&*self.shown);
        };
        waiting.held.insert(order, Told { item: KeptItem::of(&item), outcome, changes });
        // One that failed is never told of.
        if waiting.held.len() > MOST
            && let Some((&first, _)) = waiting.held.first_key_value()
        {
            waiting.next = first;
            waiting.go_on(&*self.shown);
        }
    }

    fn tell_all(&self) {
        let mut waiting = lock(&self.state);
        while let Some((&first, _)) = waiting.held.first_key_value() {
            waiting.next = first;
            waiting.go_on(&*self.shown);
        }
    }
}

impl Waiting {
    /// Tells of those that have no other before them.
    fn go_on(&mut self, shown: &dyn Reporter) {
        while let Some(Told { item, outcome, changes }) = self.held.remove(&self.next) {
            tell(shown, item.item(), outcome, changes);
            self.next += 1;
        }
    }
}

fn tell(shown: &dyn Reporter, item: Item, outcome: Option<Outcome>, changes: Changes) {
    shown.event(match outcome {
        Some(outcome) => Event::File(item, outcome, changes),
        None => Event::Made(item, changes),
    });
}

impl Reporter for InOrder {
    fn event(&self, event: Event) {
        match event {
            Event::File(item, outcome, changes) => self.entry(item, Some(outcome), changes),
            Event::Made(item, changes) => self.entry(item, None, changes),
            Event::Removed(_) | Event::Retry(_) => {
                self.tell_all();
                if matches!(event, Event::Retry(_)) {
                    lock(&self.state).next = 0;
                }
                self.shown.event(event);
            }
            other => self.shown.event(other),
        }
    }

    fn summary(&self, summary: &Summary) {
        self.tell_all();
        self.shown.summary(summary);
    }
}

/// What was done is told of also where the run ends with an error.
impl Drop for InOrder {
    fn drop(&mut self) {
        self.tell_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::report::ItemKind;

    #[derive(Default)]
    struct Paths(Arc<Mutex<Vec<String>>>);

    impl Reporter for Paths {
        fn event(&self, event: Event) {
            if let Event::File(item, ..) | Event::Made(item, _) = event {
                lock(&self.0).push(String::from_utf8(item.path.to_vec()).expect("plain"));
            }
        }

        fn summary(&self, _: &Summary) {}
    }

    fn done(order: impl IntoIterator<Item = u64>) -> (Vec<String>, Vec<String>) {
        let paths = Paths::default();
        let told = Arc::clone(&paths.0);
        let in_order = InOrder::new(Box::new(paths));
        for order in order {
            let path = order.to_string();
            let item = Item { order: Some(order), ..Item::new(path.as_bytes(), ItemKind::Directory) };
            in_order.event(Event::Made(item, Changes::NEW));
        }
        let before = lock(&told).clone();
        drop(in_order);
        let after = lock(&told).clone();
        (before, after)
    }

    #[test]
    fn entries_are_told_of_in_their_order() {
        let (before, after) = done([2, 0, 1, 5, 4]);
        assert_eq!(before, ["0", "1", "2"]);
        assert_eq!(after, ["0", "1", "2", "4", "5"]);
    }

    #[test]
    fn one_that_is_never_told_of_is_not_waited_for_long() {
        let most = MOST as u64;
        let (before, after) = done((1..most + 2).rev());
        assert_eq!((before.len(), after.len()), (MOST + 1, MOST + 1));
        assert!(after.is_sorted_by_key(|path| path.parse::<u64>().expect("a number")));
        let (before, _) = done((1..=most).chain([0]));
        assert_eq!(before.len(), MOST + 1);
    }
}
