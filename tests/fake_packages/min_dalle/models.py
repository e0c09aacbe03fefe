"""The two networks: one layer of attention is one average over what was seen."""

import torch
from torch import nn

IMAGE_TOKEN_COUNT = 16  # 256 in the real package


class GLU(nn.Module):
    def __init__(self, width, middle):
        super().__init__()
        self.ln0 = nn.LayerNorm(width)
        self.fc0 = nn.Linear(width, middle, bias=False)
        self.fc2 = nn.Linear(middle, width, bias=False)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc0(self.ln0(x))))


class Layer(nn.Module):
    def __init__(self, width, middle):
        super().__init__()
        self.glu = GLU(width, middle)


class DalleBartEncoder(nn.Module):
    def __init__(
        self,
        layer_count,
        embed_count,
        attention_head_count,
        text_vocab_count,
        text_token_count,
        glu_embed_count,
        device,
    ):
        super().__init__()
        self.embed_tokens = nn.Embedding(text_vocab_count, embed_count)
        self.embed_positions = nn.Embedding(text_token_count, embed_count)
        self.layers = nn.ModuleList(Layer(embed_count, glu_embed_count) for _ in range(layer_count))
        self.layernorm_embedding = nn.LayerNorm(embed_count)
        self.final_ln = nn.LayerNorm(embed_count)
        self.pose_tokens = torch.stack([torch.arange(text_token_count, device=device)] * 2)

    def forward(self, text_tokens):
        x = self.layernorm_embedding(self.embed_tokens(text_tokens) + self.embed_positions(self.pose_tokens))
        for layer in self.layers:
            x = x + layer.glu(x)
        return self.final_ln(x)


class DalleBartDecoder(nn.Module):
    def __init__(
        self,
        image_vocab_count,
        embed_count,
        attention_head_count,
        glu_embed_count,
        layer_count,
        device,
    ):
        super().__init__()
        self.embed_tokens = nn.Embedding(image_vocab_count + 1, embed_count)
        self.embed_positions = nn.Embedding(IMAGE_TOKEN_COUNT, embed_count)
        self.layers = nn.ModuleList(Layer(embed_count, glu_embed_count) for _ in range(layer_count))
        self.layernorm_embedding = nn.LayerNorm(embed_count)
        self.final_ln = nn.LayerNorm(embed_count)
        self.lm_head = nn.Linear(embed_count, image_vocab_count + 1, bias=False)
        self.token_indices = torch.arange(IMAGE_TOKEN_COUNT, device=device)

    def forward(self, attention_mask, encoder_state, attention_state, prev_tokens, token_index):
        rows = encoder_state.shape[0]
        x = self.embed_tokens(prev_tokens.repeat(rows // prev_tokens.shape[0], 1))
        x = self.layernorm_embedding(x + self.embed_positions(token_index[None].repeat(rows, 1)))
        seen = (self.token_indices <= token_index).to(x.dtype)
        asked = attention_mask[:, 0, 0, :, None].to(x.dtype)
        for number, layer in enumerate(self.layers):
            attention_state[number][:, token_index] = torch.cat([x, x])
            before = (attention_state[number][:rows] * seen[:, None]).sum(1, keepdim=True) / seen.sum()
            prompt = (encoder_state * asked).sum(1, keepdim=True) / asked.sum(1, keepdim=True)
            x = x + layer.glu(x + before + prompt)
        return self.lm_head(self.final_ln(x)), attention_state
