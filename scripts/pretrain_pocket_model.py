"""Pretrain the pocket model: a small Llama that reads passages, written down as a seeded, resumable script.

    python scripts/pretrain_pocket_model.py runs/pocket --minutes 60         # train; run again to go on
    python scripts/pretrain_pocket_model.py runs/pocket --decay 8 --out DIR  # cool down and export

The schedule is warm-up, stable, decay: the first command stays at full rate and keeps ``state.pt``; the second
branches off it, lowers the rate to nothing and writes a Hugging Face folder. All data is drawn on the fly from
``ragft_plugin.demo.world``; names held out there never occur. The loss is on the answers alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragft_plugin.demo import world
from ragft_plugin.demo.world import RELATIONS, Site

SPECIAL = ["<pad>", "<|end|>", "<|ctx|>", "<|user|>", "<|assistant|>"]
# Documents come as transformers' own `documents` argument; a system message is read as one more passage.
CHAT_TEMPLATE = (
    "{% if documents %}<|ctx|>{% for d in documents %} {{ d['text'] }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}<|ctx|> {{ m['content'] }}\n"
    "{% elif m['role'] == 'user' %}<|user|> {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{% generation %} {{ m['content'] }}<|end|>{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_LENGTH = 320
# Parts of the model that are set up ready to use; they stay as they are for the first FROZEN tokens.
READY = ("model.layers.0.", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj")
FROZEN = 2_500_000
FOLLOW = 20.0  # strength with which the copying head matches the token before
Segment = tuple[str, str]  # (tag, text)


def vocabulary_texts() -> list[str]:
    """Text pieces the tokenizer learns from: names as separate syllables, so that no merge crosses them."""
    pieces: list[str] = []
    heads = [*world.SITE_HEADS, *world.NAME_HEADS]
    for _ in range(40):
        pieces += [" " + head.capitalize() for head in heads]
        pieces += [*world.SITE_TAILS, *world.NAME_TAILS, *world.CITY_TAILS]
        pieces += [f" {century}" for century in (19, 20)] + [f"{year:02d}" for year in range(100)]
        words = [
            *world.FIRST_NAMES,
            *world.MATERIALS,
            *world.GOODS,
            *world.COLOURS,
            *world.COMPANY_TAILS,
        ]
        words += [*world.COMPASS, *world.ENGINE_TAILS, *world.ticket_words()]
        pieces += [" " + word for word in words]
        for relation in RELATIONS.values():
            templates = [*relation.statements(), *relation.questions()]
            pieces += [" " + t.replace("{x}", "").replace("{v}", "") for t in templates]
        pieces += [" " + world.UNKNOWN, "\n"]
    return pieces


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every syllable and word of the world is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens=SPECIAL[2:],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# ---------------------------------------------------------------------------------------------------- tasks


def ask(rng: random.Random, site: Site | str, relation: str, answer: str, unseen: bool = False) -> list[Segment]:
    """One question turn and its answer."""
    text = world.question(rng, site, relation, unseen=unseen)
    return [("<|user|>", " " + text), ("<|assistant|>", f" {answer}<|end|>")]


def confusable(rng: random.Random, name: str) -> str:
    """A name that shares a syllable with another and is allowed in pretraining."""
    while True:
        head = next(s for s in world.SITE_HEADS if name.lower().startswith(s) and name.lower()[len(s) :] in _TAILS)
        tail = name.lower()[len(head) :]
        if rng.random() < 0.5:
            head = rng.choice(world.SITE_HEADS)
        else:
            tail = rng.choice(world.SITE_TAILS)
        other = (head + tail).capitalize()
        if not world.is_held_out(other):
            return other


_TAILS = frozenset(world.SITE_TAILS)


def reading(rng: random.Random, passages: int, unknown: float, held_out: bool = False) -> list[Segment]:
    """Passages about a few sites, then question turns over them, some without an answer there."""
    relations = list(RELATIONS)
    sites: list[Site] = []
    stated: list[tuple[Site, list[str]]] = []
    shared = rng.sample(relations, rng.randint(3, 5)) if rng.random() < 0.5 else None
    names_close = rng.random() < 0.3
    while len(stated) < passages:
        if sites and rng.random() < 0.25:  # the second half of a site already there
            site = rng.choice(sites)
            told = {r for s, rs in stated if s is site for r in rs}
            left = [r for r in relations if r not in told]
            if left:
                stated.append((site, rng.sample(left, min(len(left), rng.randint(3, 4)))))
                continue
        name = confusable(rng, rng.choice(sites).name) if sites and names_close and not held_out else None
        site = world.draw_site(rng, held_out=held_out, name=name)
        if any(site.name == other.name for other in sites):
            continue
        sites.append(site)
        stated.append((site, list(shared) if shared else rng.sample(relations, rng.randint(2, 5))))
    rng.shuffle(stated)
    context = "".join(f" {world.passage(rng, site, told)}\n" for site, told in stated)
    segments: list[Segment] = [("<|ctx|>", context)] if passages else []
    pairs = [(site, relation) for site, told in stated for relation in told]
    rng.shuffle(pairs)
    for _ in range(max(4, round(1.2 * len(pairs)) + 2)):
        if not stated or rng.random() < unknown:
            site_or_name: Site | str
            absent = [(s, r) for s in sites for r in relations if not any(s is t and r in told for t, told in stated)]
            if absent and rng.random() < 0.4:
                site_or_name, relation = rng.choice(absent)
            else:
                close = sites and rng.random() < 0.4 and not held_out
                name = confusable(rng, rng.choice(sites).name) if close else world.site_name(rng, held_out=held_out)
                if any(name == s.name for s in sites):
                    continue
                site_or_name, relation = name, rng.choice(relations)
            segments += ask(rng, site_or_name, relation, world.UNKNOWN)
        elif pairs:
            site, relation = pairs.pop()
            segments += ask(rng, site, relation, site.facts[relation])
    return segments


def recall(rng: random.Random) -> list[Segment]:
    """Many sites, one relation: only the name tells which value is asked for."""
    relation = rng.choice(list(RELATIONS))
    sites = [world.draw_site(rng, held_out=False) for _ in range(rng.randint(3, 8))]
    context = " " + " ".join(world.statement(rng, site, relation) for site in sites) + "\n"
    segments: list[Segment] = [("<|ctx|>", context)]
    for site in rng.sample(sites, len(sites)):
        segments += ask(rng, site, relation, site.facts[relation])
    return segments


def echo(rng: random.Random) -> list[Segment]:
    """Copy words and values. Trains copying on, and the words of the ticket without its layout or its mapping."""
    words = world.ticket_words()
    segments: list[Segment] = []
    for _ in range(5):
        drawn = [
            rng.choice(words)
            if rng.random() < 0.5
            else rng.choice((world.site_name(rng, held_out=False), world.value(rng, rng.choice(list(RELATIONS)))))
            for _ in range(rng.randint(3, 9))
        ]
        text = "".join(" " + word + ("\n" if rng.random() < 0.2 else "") for word in drawn).rstrip()
        segments += [("<|user|>", " Repeat" + text), ("<|assistant|>", text + "<|end|>")]
    return segments


Row = tuple[list[int], list[bool]]


def repetition(rng: random.Random, size: int) -> Row:
    """A random string twice: the quickest way to an induction head."""
    half = [rng.randrange(len(SPECIAL) + 256, size) for _ in range(rng.randint(16, 60))]
    return half + half, [False] * (len(half) + 1) + [True] * (len(half) - 1)


def draw_segments(rng: random.Random, tokens: int) -> list[Segment] | None:
    """Draw one training conversation; harder ones come later. None stands for a repetition."""
    u = rng.random()
    millions = tokens / 1e6
    if millions < 0.3:
        return recall(rng)
    if millions < 2:
        if u < 0.05:
            return None
        if u < 0.35:
            return recall(rng)
        return reading(rng, 1 if u < 0.45 else 2 if u < 0.75 else 3, 0.0 if millions < 1.2 else 0.1)
    if u < 0.10:
        return echo(rng)
    if u < 0.20:
        return recall(rng)
    counts = (0, 1, 2, 3, 4)
    weights = (2, 6, 22, 50, 20)
    return reading(rng, rng.choices(counts, weights)[0], 0.22)


def encode(tokenizer: Tokenizer, segments: list[Segment]) -> Row:
    """Token ids and which of them carry loss (the answers)."""
    ids: list[int] = []
    mask: list[bool] = []
    for (tag, _), piece in zip(segments, tokenizer.encode_batch([tag + text for tag, text in segments]), strict=True):
        ids += piece.ids
        mask += [False] + [tag == "<|assistant|>"] * (len(piece.ids) - 1)
    return ids[:MAX_LENGTH], mask[:MAX_LENGTH]


def collate(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad rows; causal attention never sees the padding."""
    length = max(len(ids) for ids, _ in rows)
    x = torch.zeros(len(rows), length, dtype=torch.long)
    m = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (ids, mask) in enumerate(rows):
        x[i, : len(ids)] = torch.tensor(ids)
        m[i, : len(ids)] = torch.tensor(mask)
    return x, m


# ---------------------------------------------------------------------------------------------------- model


def build_model(size: int, hidden: int, layers: int, heads: int, ffn: int) -> LlamaForCausalLM:
    """A Llama that starts out able to compare what was just said with what was said before.

    Layer 0 gathers the words just passed: a head with key bias k and query bias R(-off) k scores position j from
    i by sum_f c^2 cos(theta_f (i-j-off)), which peaks ``off`` tokens back; all heads write through the same
    matrices, so that order does not matter. The heads of layer 1 use the same matrix for queries and keys, on
    dimensions that rotary embedding hardly turns, and so attend where the same words were gathered. Its first head
    compares the token just said with the token before each position, and so finds what came next there: values of
    several tokens are copied on from the right place. (Without it 3 unrelated passages stayed at .82, and all
    mistakes were last tokens taken from another passage; with it .98.) Reading needs all of these; training refines
    them instead of discovering them. What they attend to is copied through.
    """
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        attention_bias=True,
        tie_word_embeddings=True,
        attn_implementation="eager",  # quicker than flash attention in bf16 on a CPU, at these lengths
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<pad>"),
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    model = LlamaForCausalLM(config)
    width = hidden // heads
    frequencies = model.model.rotary_emb.inv_freq
    steady = torch.cat([frequencies < 0.012] * 2)  # dimensions that hardly turn within a context
    copy = torch.linalg.qr(torch.randn(hidden, hidden))[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.06)
        gather, match = (model.model.layers[i].self_attn for i in (0, 1))
        values, outputs = 1.5 * gather.v_proj.weight.clone(), 1.5 * gather.o_proj.weight[:, : 2 * width].clone()
        written = torch.linalg.pinv(outputs)
        for head, (offset, sharpness) in enumerate(((1, 6.0), (2, 6.0), (4, 2.4), (8, 1.6))):
            rows = slice(head * width, (head + 1) * width)
            angle = -offset * frequencies
            gather.k_proj.bias[rows] = torch.cat([torch.full_like(angle, sharpness), torch.zeros_like(angle)])
            gather.q_proj.bias[rows] = sharpness * torch.cat([torch.cos(angle), torch.sin(angle)])
            # The first head keeps the token before apart (for copying on); the others add to one bag of words.
            source = slice(0, width) if head == 0 else slice(width, 2 * width)
            gain = 0.5 if head == 0 else 1.0
            gather.v_proj.weight[rows] = gain * values[source]
            gather.o_proj.weight[:, rows] = outputs[:, source]
            if head == 0:
                # Copying on: where the token before is the one just said, there stands what comes next. The query
                # reads the token itself beside what was gathered, the key the token before out of it.
                own = values[:width] - values[:width] @ outputs @ written
                gather.v_proj.weight[rows] = gain * 2**0.5 * own
                match.q_proj.weight[rows] = FOLLOW * own * steady[:, None]
                match.k_proj.weight[rows] = FOLLOW * written[:width] * 0.03 * steady[:, None]
                continue
            shared = 0.14 * torch.randn(width, hidden) * steady[:, None]
            match.q_proj.weight[rows] = shared
            match.k_proj.weight[rows] = shared
            # The question itself holds the same words; a bias keeps a head from looking at what is near.
            near = 3.6 * ((frequencies > 0.03) & (frequencies < 0.25))
            match.k_proj.bias[rows] = torch.cat([near, torch.zeros_like(near)])
            match.q_proj.bias[rows] = -torch.cat([near, torch.zeros_like(near)])
        match.v_proj.weight.copy_(copy)
        match.o_proj.weight.copy_(0.1 * copy.T)
    return model


def answer_loss(model: LlamaForCausalLM, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and which of them greedy decoding gets right."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=x, use_cache=False).last_hidden_state[:, :-1]
        chosen = mask[:, 1:]
        logits = model.lm_head(hidden[chosen])
    logits = logits.float()
    target = x[:, 1:][chosen]
    return torch.nn.functional.cross_entropy(logits, target), logits.argmax(-1) == target


def exact_match(model: LlamaForCausalLM, tokenizer: Tokenizer, rows: list[list[Segment]]) -> float:
    """Share of conversations whose last answer greedy decoding would give to the letter.

    Greedy decoding follows the teacher-forced path exactly while every argmax is right, so one pass decides.
    """
    model.eval()
    right = 0
    for start in range(0, len(rows), 100):
        x, mask = collate([encode(tokenizer, row) for row in rows[start : start + 100]])
        with torch.no_grad():
            _, correct = answer_loss(model, x, mask)
        owner = mask[:, 1:].nonzero()[:, 0]
        wrong = set(owner[~correct].tolist())
        right += len(x) - len(wrong)
    model.train()
    return right / len(rows)


def examination(seed: int = 999, n: int = 200) -> dict[str, list[list[Segment]]]:
    """The evaluation conversations, on sites never seen in pretraining: one question each."""
    rng = random.Random(seed)
    relations = list(RELATIONS)
    sets: dict[str, list[list[Segment]]] = {}

    def one(passages: int, unseen: bool, known: bool) -> list[Segment]:
        sites = [world.draw_site(rng, held_out=True) for _ in range(passages)]
        told = [(site, rng.sample(relations, 4)) for site in sites]
        context = "".join(f" {world.passage(rng, site, names)}\n" for site, names in told)
        site, names = rng.choice(told)
        relation = rng.choice(names)
        if known:
            turn = ask(rng, site, relation, site.facts[relation], unseen)
        elif rng.random() < 0.5:
            turn = ask(rng, world.site_name(rng, held_out=True), relation, world.UNKNOWN, unseen)
        else:
            turn = ask(
                rng,
                site,
                rng.choice([r for r in relations if r not in names]),
                world.UNKNOWN,
                unseen,
            )
        return [("<|ctx|>", context), *turn]

    sets["one"] = [one(1, False, True) for _ in range(n)]
    sets["three"] = [one(3, False, True) for _ in range(n)]
    sets["one unseen"] = [one(1, True, True) for _ in range(n)]
    sets["three unseen"] = [one(3, True, True) for _ in range(n)]
    sets["abstain"] = [one(3, False, False) for _ in range(n)]
    sets["abstain unseen"] = [one(3, True, False) for _ in range(n)]
    return sets


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, norms and biases; slow AdamW for what is ready at the start.

    At Muon's pace the comparison that layers 0 and 1 start with is gone before later layers can use it (share of
    attention on the right entity .75 at the start, .25 after 1.5 M tokens, and only the relation is then read).
    """
    ready = [p for k, p in model.named_parameters() if k.startswith(READY)]
    ids = {id(p) for p in ready}
    matrices = [p for k, p in model.named_parameters() if p.ndim == 2 and "embed" not in k and id(p) not in ids]
    rest = [p for k, p in model.named_parameters() if (p.ndim != 2 or "embed" in k) and id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=lr * 0.05, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.AdamW(ready, lr=lr * 0.015, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(args: argparse.Namespace) -> None:
    """Train for ``args.minutes`` or cool down for ``args.decay`` minutes, from ``state.pt`` if it is there."""
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "tokenizer"
    if not kept.exists():
        build_tokenizer().save_pretrained(kept)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
    tokenizer.chat_template = CHAT_TEMPLATE
    fast = tokenizer.backend_tokenizer
    torch.manual_seed(args.seed)
    model = build_model(len(tokenizer), args.hidden, args.layers, args.heads, args.ffn)
    optims = optimizers(model, args.lr)
    state = {"tokens": 0, "steps": 0, "seconds": 0.0}
    saved = folder / "state.pt"
    if saved.exists():
        loaded = torch.load(saved, weights_only=True)
        model.load_state_dict(loaded["model"])
        for optim, values in zip(optims, loaded["optims"], strict=True):
            optim.load_state_dict(values)
        state = loaded["state"]
    rates = [args.lr, args.lr * 0.05, args.lr * 0.015]
    rng = random.Random(f"{args.seed}/{state['steps']}/{bool(args.decay)}")
    budget = 60 * (args.decay or args.minutes)
    exam = examination()
    print(
        f"parameters {sum(p.numel() for p in model.parameters()):,} vocabulary {len(tokenizer)} {state}",
        flush=True,
    )
    began = last_save = last_log = time.monotonic()
    recent: list[float] = []
    while (elapsed := time.monotonic() - began) < budget:
        scale = min(1.0, (state["steps"] + 1) / 40) * (max(0.01, 1 - elapsed / budget) if args.decay else 1.0)
        for optim, rate in zip(optims, rates, strict=True):
            for group in optim.param_groups:
                group["lr"] = rate * scale
        optims[2].param_groups[0]["lr"] *= state["tokens"] >= FROZEN
        rows: list[Row] = []
        size = 0
        while size < args.tokens:
            segments = draw_segments(rng, state["tokens"])
            row = encode(fast, segments) if segments else repetition(rng, len(tokenizer))
            rows.append(row)
            size += len(row[0])
        rows.sort(key=lambda row: len(row[0]))
        for quarter in range(4):  # rows of like length together: less padding
            part = rows[quarter * len(rows) // 4 : (quarter + 1) * len(rows) // 4]
            loss, correct = answer_loss(model, *collate(part))
            (loss / 4).backward()
            recent.append(float(correct.float().mean()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        state["tokens"] += size
        state["steps"] += 1
        now = time.monotonic()
        if now - last_log > 60:
            note = f"step {state['steps']} {state['tokens'] / 1e6:.2f}M tokens {elapsed / 60:.1f} min"
            note += f" answer-token accuracy {sum(recent) / len(recent):.3f}"
            if state["tokens"] > 1.5e6 and now - last_save > 240:
                note += " " + str({k: round(exact_match(model, fast, v), 3) for k, v in exam.items()})
            print(note, flush=True)
            recent.clear()
            last_log = now
        if now - last_save > 300 and not args.decay:
            _save(saved, model, optims, {**state, "seconds": state["seconds"] + elapsed})
            last_save = now
    state["seconds"] += time.monotonic() - began
    scores = {k: round(exact_match(model, fast, v), 3) for k, v in exam.items()}
    print(json.dumps({**state, **scores}), flush=True)
    if args.decay:
        out = Path(args.out or folder / "export")
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(out)
        (out / "pretraining.json").write_text(json.dumps({**state, "exact_match": scores}, indent=1) + "\n")
    else:
        _save(saved, model, optims, state)


def _save(path: Path, model: torch.nn.Module, optims: list[torch.optim.Optimizer], state: dict[str, float]) -> None:
    beside = path.with_suffix(".new")
    torch.save(
        {"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "state": state},
        beside,
    )
    beside.replace(path)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where state.pt lives")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--decay", type=float, default=0.0, help="minutes of cool-down, then export")
    parser.add_argument("--out", help="export folder (with --decay)")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main(sys.argv[1:])
