"""Every key of the project, with its default and meaning. No default stands anywhere else.

A configuration is `base.get_config()` plus its differences. On the command line any key can be set:
`--config.srl.group_size=16`. A key that does not exist or a value of another type is an error, in a
configuration file too (`pasmr_jax/experiment/validation.py`).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # everything random derives from it and the step
  config.stages = ("pam", "srl")  # in this order, of: base, pam, srl
  config.init_from = ""  # work directory of another run: start from its last stage's parameters,
  #                        with supervised data in another order than that run had at first
  config.pivot = "en"  # pivot language
  config.languages = ("de", "es")  # target languages

  config.model = model()
  config.lora = lora()
  config.tokenizer = tokenizer()
  config.prompt = prompt()
  config.data = data()
  config.mesh = ConfigDict()
  config.mesh.replica = -1  # groups of devices with all parameters each, which the batch is split
  #                           over; -1: one a slice, where several slices are joined by network
  config.mesh.fsdp = -1  # devices over which parameters and batch are split; -1: all that are left
  config.mesh.tensor = 1  # devices of one host over which heads, MLP and vocabulary are split

  config.base = supervised(
    {"pivot": 0.6, "translation": 0.35, "target": 0.05, "triplets": 0.0}, steps=1000
  )
  config.pam = supervised(
    {"pivot": 0.4, "translation": 0.0, "target": 0.0, "triplets": 0.6}, steps=300
  )
  config.srl = srl()
  config.feedback = feedback()
  config.reward = reward()
  config.rollout = rollout()
  config.evaluation = evaluation()
  config.checkpoint = checkpoint()
  config.guard = guard()
  config.log = log()
  return config


def model() -> ConfigDict:
  config = ConfigDict()
  config.pretrained = ""  # Hugging Face folder, hub id or .gguf file; '' is random initialisation
  config.revision = ""  # branch, tag or commit of a hub id; '' is its main branch
  config.dtype = "float32"  # of activations: float32 or bfloat16
  config.param_dtype = "float32"  # of parameters, their gradients and optimizer moments
  config.remat = "none"  # recompute in the backward pass: none, full (every layer) or dots
  config.scan_unroll = 1  # layers a loop iteration; small models decode faster unrolled
  config.attention = "auto"  # in training and scoring: xla, splash (a kernel for TPUs), or auto:
  #                            splash on TPUs for heads of a multiple of 64, xla elsewhere
  # Shape of a randomly initialised model; not read when `pretrained` is set.
  config.embed_dim = 128
  config.num_layers = 3
  config.num_heads = 4
  config.num_kv_heads = 2
  config.head_dim = 32
  config.mlp_dim = 256
  return config


def lora() -> ConfigDict:
  """Adapters for pam and srl: the weights stay as base, init_from or pretrained has them.

  docs/architecture.md says what their checkpoints hold.
  """
  config = ConfigDict()
  config.rank = 0  # of each adapter; 0 trains all weights and has none
  config.alpha = 16.0  # an adapter's product is multiplied by alpha / rank
  config.targets = ("query", "key", "value", "output", "gate", "up", "down")  # weights with one
  return config


def tokenizer() -> ConfigDict:
  config = ConfigDict()
  config.path = ""  # SentencePiece .model file, folder, hub id, .gguf; '' is model.pretrained;
  #                   'synthetic' trains the built-in corpus' own in the work directory
  config.open = ""  # stands before the translation; '' is a reserved token where the vocabulary has
  #                   one ('<unused0>', '<|reserved_special_token_0|>', ...), else '<pivot>'
  config.close = ""  # stands after it; '' if and only if `open` is
  config.delimiters = "added"  # what they are where the vocabulary lacks them: added (a new token
  #                              and embedding row each) or tags (text, several tokens)
  config.stop = ()  # more tokens that end a response besides end of sequence; in a chat what its
  #                   template writes behind an answer is one of itself
  config.pad = ""  # padding token; '' is the tokenizer's own, or another that ends no response
  return config


def prompt() -> ConfigDict:
  config = ConfigDict()
  config.question = "{question}\n"  # asks a question in any language; the bare pivot prompt too
  config.translation = "{question}\n="  # asks for a translation only (base stage)
  config.style = "plain"  # plain: the text as it is; chat: as a user's message in the model's own
  #                         chat template, without outer spaces
  config.system = ""  # system text of a chat; '' is what the chat template has of its own
  config.thinking = False  # whether a chat leaves room for a thought before the response, where the
  #                          chat template has that switch (Qwen 3); False writes an empty one
  return config


def data() -> ConfigDict:
  """Each pool is a tuple of sources 'FORMAT:LOCATION[START:STOP]' (see data/pools.py).

  In `development` and `test` a source may be the name of a published set: 'mgsm', 'msvamp[:100]'.
  `{language}` in a location stands for each language of the pool, `{target}` for each target
  language, `{root}` for `data.root`.
  """
  config = ConfigDict()
  config.root = ""  # folder that {root} stands for
  config.pivot = ()  # pivot questions with solutions: base stage, rehearsal
  config.translation = ()  # target questions with pivot text: base stage
  config.target = ()  # target questions with solutions: base stage
  config.triplets = ()  # target questions with pivot text and solution: PAM
  config.srl = ()  # target questions: SRL; answers are dropped unless feedback.source is gold
  config.development = ()  # questions with answers in every language: curves, best checkpoint
  config.test = ()  # the same for the final table
  config.seed = 0  # of the built-in corpus
  config.columns = (
    ConfigDict()
  )  # names of columns in 'huggingface:' and 'json:' sources; '' is none. A pool reads what it uses
  config.columns.id = ""  # '' counts a source's questions from 1
  config.columns.language = ""  # code or English name; '' where a location has {language}, or
  #                               where there is only one language. Files of a location with
  #                               {language} may lack it
  config.columns.text = "question"
  config.columns.pivot_text = ""  # the question in the pivot language
  config.columns.solution = ""  # in the language of the question; it ends in the answer
  config.columns.answer = "answer"  # gold, in English style (1,234.5)
  return config


def optimizer(learning_rate: float) -> ConfigDict:
  config = ConfigDict()
  config.name = "adamw"  # adamw, adafactor, lion or muon
  config.learning_rate = learning_rate  # peak; adafactor's is a share of each weight's own size
  config.schedule = "cosine"  # after the warm-up: cosine, linear or constant
  config.warmup_steps = 10  # from 0 to the peak
  config.final_fraction = 0.0  # of the peak, at the stage's end
  config.b1 = 0.9  # of adamw and lion
  config.b2 = 0.95  # of adamw and lion
  config.epsilon = 1e-8  # added to the root of adamw's second moment
  config.momentum = 0.95  # of muon, for the layers' matrices; adamw has its other parameters
  config.moment_dtype = ""  # float32 or bfloat16, which b2 near 1 is too fine for; '' is the
  #                           parameters'; adafactor's are float32; steps are computed in float32
  config.weight_decay = 0.0  # a step takes learning rate * weight_decay of a weight away
  config.decayed = "matrices"  # of: matrices (no norms, no biases), layers (no tables either), all
  config.clip_norm = 1.0  # of the global gradient; 0 is off
  return config


def supervised(mixture: dict[str, float], steps: int) -> ConfigDict:
  config = ConfigDict()
  config.steps = steps  # optimizer steps
  config.batch_size = 32  # packed rows a step, over all devices
  config.max_length = 256  # tokens a row; longer examples are counted and left out
  config.microbatches = 1  # gradient accumulation
  config.mixture = ConfigDict(mixture)  # share of examples from each pool
  config.patience = 0  # stop after so many evaluations without a new best; 0 is never
  config.optimizer = optimizer(1e-3)
  return config


def srl() -> ConfigDict:
  config = ConfigDict()
  config.steps = 300  # rollouts; an optimizer step each, or inner_batches * inner_epochs
  config.questions = 8  # B, questions a step, over all processes
  config.group_size = 16  # G, responses a question
  config.max_prompt_length = 128  # longer questions are counted and left out, never cut
  config.max_new_tokens = 128  # of a response; what meets the limit is marked truncated
  config.max_pivot_tokens = 64  # of a pivot solution
  config.temperature = 1.0  # of responses; the policy that is learned is the one at it
  # Truncation of what is drawn, responses and pivot solutions alike.
  config.top_k = 0  # 0 is off
  config.top_p = 1.0  # 1 is off
  config.min_p = 0.0  # 0 is off
  config.update_rows = 0  # train on so many rows of most extreme advantage a step; 0 is all
  config.inner_batches = 1  # optimizer steps a rollout, each on a part of its rows
  config.inner_epochs = 1  # passes over a rollout
  config.row_length = 0  # responses are packed into rows of so many tokens; 0: as the longest
  config.longer_rows = ()  # other lengths, each a program of its own: a step takes the one that
  #                          leaves the least padding; those that are not longer are left out
  # Gradient accumulation: row_bucket / microbatches rows at a time, as often as there are rows. So
  # few, on average half of them, are padding; so many are in memory.
  config.row_bucket = 8
  config.microbatches = 1
  config.mask_truncated = True  # truncated responses have no gradient
  config.advantage = "dr_grpo"  # grpo, dr_grpo, rloo or reinforce_pp
  config.credit = "split"  # all: one advantage a response; split: translation and reasoning apart
  config.understanding_weight = 1.0  # of the translation's advantage under split credit; 0 is none
  config.aggregation = "token"  # token: every token weighs alike; sequence: every response
  config.clip_low = 0.2  # the ratio of new to old policy is clipped at 1 - clip_low
  config.clip_high = 0.2  # and 1 + clip_high
  config.kl_coef = 0.02  # of KL(policy || stage-1 policy); 0 holds no reference
  config.kl_estimator = "k3"  # k1, k2 or k3
  config.exact_entropy = False  # also report the policy's entropy over the whole vocabulary, as
  #                               `exact_entropy`; `entropy` is an estimate from the tokens drawn
  config.importance_cap = 2.0  # C of the truncated importance sampling between learner and sampler
  config.rehearsal_weight = 0.0  # of a supervised term on the PAM mixture in every update
  config.rehearsal_rows = 8  # packed rows of it a step
  config.patience = 0  # stop after so many evaluations without a new best; 0 is never
  config.optimizer = optimizer(5e-4)
  return config


def feedback() -> ConfigDict:
  config = ConfigDict()
  config.source = "pivot"  # pivot, target_majority, gold, random or shuffled
  config.teacher = "policy"  # who answers in the pivot: policy, reference (stage 1) or ema
  config.ema_decay = 0.99  # of the teacher 'ema', a step
  config.scope = "pooled"  # own: a translation's K votes; pooled: all G * K of the question
  config.pivot_samples = 4  # K, pivot solutions a distinct translation
  config.pivot_temperature = 1.0  # at which the teacher draws them
  config.confidence = 0.0  # tau: a vote below it teaches nothing
  return config


def reward() -> ConfigDict:
  config = ConfigDict()
  config.kind = "majority"  # majority: 1 for the label; soft: the share of votes for the answer
  config.gate = True  # agreement counts only if format and languages are right
  config.format_weight = 0.0  # of the term: well-formed and an answer present
  config.language_weight = 0.0  # of the term: reasoning in the target, translation in the pivot
  config.length_weight = 0.0  # of the term: minus response length over its limit
  return config


def rollout() -> ConfigDict:
  config = ConfigDict()
  config.prompt_bucket = 32  # prompts are padded to a multiple of this
  config.slots = 256  # rows decoded together, pivot solutions too; 0: as many as responses, up to
  #                     a power of two on each device
  config.prefill_prompts = 16  # prompts computed together
  config.refill_steps = 8  # tokens drawn between looks at which slots are free
  config.cache_dtype = ""  # of keys and values: float32 | bfloat16 | int8; empty is model.dtype
  return config


def evaluation() -> ConfigDict:
  config = ConfigDict()
  config.every = 100  # steps between development evaluations; 0 is only at a stage's end
  config.development_questions = 50  # a language; 0 is all
  config.test_questions = 0  # a language, after each stage; 0 is all
  config.sampled = True  # also by sampling, besides greedy
  config.temperature = 1.0  # of sampling
  config.samples = 1  # n of mean@n and maj@n: samples a test question
  config.label_questions = 0  # development questions on which SRL's labels are checked; 0 is none
  config.batch_size = 128  # responses decoded together
  config.max_new_tokens = 128
  config.max_prompt_length = 128  # questions with a longer prompt are counted and left out
  # How questions are asked and answers judged; docs/evaluation.md has all of it with examples.
  config.ask = "pasmr"  # pasmr, native_cot, english_cot, direct, translate or reference
  config.exemplars = 0  # worked examples before the question, 0 to 8; 0 for pasmr
  config.exemplar_file = ""  # MGSM's exemplars.json, or one like it
  config.template = "{question}"  # around such a prompt, not pasmr's: the turn of a chat model
  config.stop = ("\n\n",)  # texts that end an answer after worked examples
  config.scoring = "pasmr"  # accuracy by: pasmr, lm_eval, lm_eval_flexible or mathoctopus
  config.pivot_agreement = False  # also ask the model its own translation, and compare (pasmr)
  return config


def checkpoint() -> ConfigDict:
  config = ConfigDict()
  config.every = 50  # steps; an evaluation that is the best so far is saved too
  config.keep = 2  # newest ones kept, besides the best and each stage's last
  config.metric = "development/target_accuracy"  # the best has the highest; or development/
  #                           pivot_accuracy, or either as development/sampled/...
  config.compiled = True  # also keep compiled programs, in WORKDIR/compiled: a restart does not
  #                         compile again; JAX_COMPILATION_CACHE_DIR names another folder
  config.notice = ""  # a file that appears, or a URL that answers TRUE, when the machine will go:
  #                     the run then stops as by a signal; docs/operations.md has Google Cloud's
  return config


def guard() -> ConfigDict:
  """What stops a run that goes wrong; docs/operations.md says what each means and what to do."""
  config = ConfigDict()
  config.skipped_in_a_row = 5  # an update whose loss or gradient is not finite is skipped; stop
  #                              after so many steps in a row with one; 0 is never
  config.untaught_steps = 20  # say so when self-feedback has taught nothing for so many steps in a
  #                             row, and again each time that number has doubled; 0 is never
  config.hang_minutes = 60.0  # without a step, or a part of an evaluation, end; 0 is never
  # The alarm of self-feedback: agreement rises while another quantity falls.
  config.collapse_action = "continue"  # on an alarm: continue, stop, or return: the best checkpoint
  #                                      becomes the stage's last
  config.collapse_window = 20  # steps that are averaged; 0 is no alarm
  config.collapse_rise = 0.05  # of agreement, since the quantity was at its best
  # Share of its best that a quantity loses; 0 does not watch it.
  config.collapse_accuracy = 0.2  # development/target_accuracy
  config.collapse_entropy = 0.8  # of the answers to a question; it halves in a healthy run
  config.collapse_numbers = 0.1  # of the question's numbers in its translation
  config.collapse_language = 0.1  # of texts in the language asked for
  return config


def log() -> ConfigDict:
  config = ConfigDict()
  config.every = 1  # steps between lines of metrics
  config.rollouts_every = 20  # steps between samples written to rollouts.jsonl; 0 is never
  config.rollouts = 2  # questions a sample
  config.tensorboard = True  # also write WORKDIR/tensorboard
  config.progress = True  # progress bar on the terminal
  return config
