//! Surroundings, read on a thread of their own: under load a look at the sockets of a machine takes longer than the
//! ring buffer has room for. Journeys wait for it; the records do not.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use crate::enrich::{NetnsPath, Reader, Roots, Surroundings};

/// Where no question was answered for this long, none will be: a reading hangs. An emulated or very busy machine takes
/// seconds for one, and each waits for those before it.
const PATIENCE: Duration = Duration::from_secs(10);

struct Question {
    netns: u32,
    path: NetnsPath,
}

struct Answer {
    netns: u32,
    begun: Instant,
    took: Duration,
    surroundings: Arc<Surroundings>,
}

/// The newest surroundings of each namespace.
pub(super) struct Around {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    known: HashMap<u32, Answer>,
    /// Questions without an answer, and when they were put.
    open: HashMap<u32, Instant>,
    /// When the last answer came.
    heard: Option<Instant>,
}

impl Around {
    pub(super) fn new() -> Self {
        let (questions, asked) = mpsc::channel::<Question>();
        let (answer, answers) = mpsc::channel();
        // It ends when either side of the channels does.
        thread::spawn(move || {
            let mut reader = Reader::new(Roots::default());
            for Question { netns, path } in asked {
                let begun = Instant::now();
                let surroundings = reader.surroundings(netns, &path, begun);
                if answer.send(Answer { netns, begun, took: begun.elapsed(), surroundings }).is_err() {
                    return;
                }
            }
        });
        Self { questions, answers, known: HashMap::new(), open: HashMap::new(), heard: None }
    }

    /// Takes the answers that have come.
    pub(super) fn listen(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer);
        }
    }

    /// Waits until an answer comes or `deadline` has passed.
    pub(super) fn wait(&mut self, deadline: Instant) {
        if let Ok(answer) = self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.take(answer);
        }
        self.listen();
    }

    fn take(&mut self, answer: Answer) {
        self.heard = Some(Instant::now());
        self.open.remove(&answer.netns);
        self.known.insert(answer.netns, answer);
    }

    /// A namespace has gone.
    pub(super) fn forget(&mut self, netns: u32) {
        self.open.remove(&netns);
        self.known.remove(&netns);
    }

    /// Whether what is known of a namespace was read at `since` or later; where it was not, it is asked for. True where
    /// nothing better will come: the reading hangs.
    pub(super) fn is_fresh(&mut self, netns: u32, path: &NetnsPath, since: Instant) -> bool {
        if self.known.get(&netns).is_some_and(|known| known.begun >= since) {
            return true;
        }
        match self.open.get(&netns) {
            Some(&put) => put.max(self.heard.unwrap_or(put)).elapsed() > PATIENCE,
            None => {
                self.open.insert(netns, Instant::now());
                self.questions.send(Question { netns, path: path.clone() }).is_err()
            }
        }
    }

    /// How long the last reading of any of these took: zero for those never read.
    pub(super) fn cost(&self, netns: &BTreeSet<u32>) -> Duration {
        netns.iter().filter_map(|netns| self.known.get(netns)).map(|known| known.took).sum()
    }

    pub(super) fn newest(&self, netns: u32) -> Option<Arc<Surroundings>> {
        self.known.get(&netns).map(|known| Arc::clone(&known.surroundings))
    }
}
