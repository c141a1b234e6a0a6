//! Answers from a model in this process.

use super::{Answer, Keys, Pressed};
use crate::options::{GenerationArgs, fresh_seed};
use crate::reply::Reply;
use crate::screen::{Screen, Summary};
use crate::session::Session;
use anyhow::{Result, bail};
use hybra_chat::ChatInput;
use hybra_engine::{Event, FinishReason, Phase, SequenceId, ThinkingParams};
use hybra_tokenizer::Message;

/// A loaded model.
pub(super) struct Local {
    pub(super) session: Session,
}

impl Local {
    /// One answer.
    pub(super) fn answer(
        &mut self,
        messages: &[Message],
        thinking: &ThinkingParams,
        options: &GenerationArgs,
        screen: &mut Screen,
        keys: Keys,
    ) -> Result<Answer> {
        let model = &self.session.model;
        let input = ChatInput { messages: messages.to_vec(), ..ChatInput::default() };
        let prompt = model.chat_prompt(&input, thinking)?;
        let sampling = options.sampling.params(&model.defaults, prompt.is_thinking(), fresh_seed());
        let message = options.thinking.thinking_budget_message.as_deref();
        let request = model.request(prompt, sampling, thinking.clone(), message)?;
        let id = self.session.engine.add(request)?;
        let mut reply = Reply::new(&options.sampling.stop);
        let (mut events, mut thought) = (Vec::new(), 0);
        loop {
            self.listen(id, keys)?;
            self.session.engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Prefill { done, total, .. } => screen.prefill(done, total),
                    Event::PromptLogprobs(_) => {}
                    Event::Token(token) => {
                        if token.step.phase == Phase::Thinking {
                            thought += 1;
                            screen.title(thought, thinking.budget);
                        }
                        let mut show = |phase, text: &str| screen.text(phase, text);
                        reply.token(&token, &self.session.model, &mut show);
                        screen.flush()?;
                    }
                    Event::Finish(end) => {
                        reply.text.finish(&end, &mut |phase, text| screen.text(phase, text));
                        screen.end()?;
                        if end.reason == FinishReason::Failed {
                            bail!("generation failed: {}", end.error.unwrap_or_default());
                        }
                        let text = format!("{}{}", reply.text.answer, reply.text.tool);
                        return Ok(Answer { text, summary: Summary::from(&end) });
                    }
                }
            }
        }
    }

    /// Handles the key that was pressed since the last step.
    fn listen(&mut self, id: SequenceId, keys: Keys) -> Result<()> {
        match keys.pressed()? {
            Pressed::Nothing => {}
            Pressed::AnswerNow => drop(self.session.engine.end_thinking(id)),
            Pressed::Stop => drop(self.session.engine.cancel(id)),
        }
        Ok(())
    }
}
