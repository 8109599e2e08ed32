//! Breadth first through every state, so that a fault comes with a shortest way to it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::rc::Rc;

/// Something that can be explored: states, what can happen in them, and what must hold.
pub(crate) trait Rules {
    type State: Clone + Eq + Hash;

    fn first_state(&self) -> Self::State;
    /// What holds in every state.
    fn check(&self, state: &Self::State) -> Result<(), String>;
    /// Everything that can happen next.
    fn moves(&self, state: &Self::State) -> Result<Vec<(Label, Self::State)>, String>;
    /// What holds when nothing can move any more.
    fn check_terminal(&self, state: &Self::State) -> Result<(), String>;
}

/// What happened, to whom: a brace stands for the name.
#[derive(Clone, Copy)]
pub(crate) struct Label(pub(crate) &'static str, pub(crate) char);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.replace('{', &self.1.to_string()))
    }
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Holds { states: usize, terminal: usize },
    Violated { states: usize, fault: String, trace: Vec<String> },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds { states, terminal } => write!(f, "holds; {states} states, {terminal} terminal"),
            Self::Violated { states, fault, trace } => {
                writeln!(f, "VIOLATED after {states} states, {} steps", trace.len())?;
                for (number, step) in (1..).zip(trace) {
                    writeln!(f, "      {number:2}. {step}")?;
                }
                write!(f, "          !! {fault}")
            }
        }
    }
}

/// A state and how it was first reached.
struct Reached<S> {
    state: Rc<S>,
    from: Option<(usize, Label)>,
}

pub(crate) fn explore<R: Rules>(model: &R) -> Outcome {
    let first = Rc::new(model.first_state());
    let mut known = HashMap::from([(Rc::clone(&first), ())]);
    let mut reached = vec![Reached { state: first, from: None }];
    let (mut at, mut terminal) = (0, 0);
    while at < reached.len() {
        let state = Rc::clone(&reached[at].state);
        let moves = model.check(&state).and_then(|()| model.moves(&state)).and_then(|moves| {
            if moves.is_empty() {
                model.check_terminal(&state)?;
            }
            Ok(moves)
        });
        let moves = match moves {
            Ok(moves) => moves,
            Err(fault) => return Outcome::Violated { states: at + 1, fault, trace: trace(&reached, at) },
        };
        terminal += usize::from(moves.is_empty());
        for (label, next) in moves {
            if !known.contains_key(&next) {
                let next = Rc::new(next);
                known.insert(Rc::clone(&next), ());
                reached.push(Reached { state: next, from: Some((at, label)) });
            }
        }
        at += 1;
    }
    Outcome::Holds { states: at, terminal }
}

fn trace<S>(reached: &[Reached<S>], mut at: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some((from, label)) = &reached[at].from {
        steps.push(label.to_string());
        at = *from;
    }
    steps.reverse();
    steps
}
